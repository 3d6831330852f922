"""Names of parameters of LW-DETR and RF-DETR at their publishers, and published configurations; whole models are in
tests/parity and test_hugging_face.py."""

from typing import Any

import pytest
import torch

from detkit.config import UserError, load_config
from detkit.detectors.lw_detr import LWDETRConfig
from detkit.engine.settings import RunConfig
from detkit.weights.lw_detr import convert_for, convert_keys, hf_config
from tests.detectors.batches import ROOT

transformers = pytest.importorskip("transformers")

AUTHORS = "backbone.0."  # of what both of their codes call `backbone`
NAMES = [
    (AUTHORS + "encoder.pos_embed", "backbone.patches.positions"),
    (AUTHORS + "encoder.patch_embed.proj.bias", "backbone.patches.projection.bias"),
    (AUTHORS + "encoder.blocks.9.gamma_2", "backbone.block10.scale2"),
    (AUTHORS + "encoder.blocks.0.attn.q_bias", "backbone.block1.attention.q.bias"),
    (AUTHORS + "encoder.blocks.0.attn.v_bias", "backbone.block1.attention.v.bias"),
    (AUTHORS + "encoder.blocks.0.attn.proj.bias", "backbone.block1.attention.out.bias"),
    (AUTHORS + "encoder.blocks.0.mlp.fc2.bias", "backbone.block1.mlp.2.bias"),
    (AUTHORS + "encoder.encoder.encoder.layer.11.layer_scale1.lambda1", "backbone.block12.scale1"),
    (AUTHORS + "encoder.encoder.encoder.layer.0.attention.output.dense.bias", "backbone.block1.attention.out.bias"),
    (AUTHORS + "encoder.encoder.layernorm.bias", "backbone.norm.bias"),
    (AUTHORS + "projector.stages_sampling.0.3.0.bn.running_var", "neck.samplers.0.3.0.norm.running_var"),
    (AUTHORS + "projector.stages_sampling.0.3.1.bias", "neck.samplers.0.3.1.bias"),
    (AUTHORS + "projector.stages.1.0.cv2.bn.weight", "neck.fuse.1.merge.norm.weight"),
    (AUTHORS + "projector.stages.1.0.m.2.cv1.conv.weight", "neck.fuse.1.blocks.2.0.conv.weight"),
    (AUTHORS + "projector.stages.1.1.bias", "neck.norms.1.bias"),
    ("transformer.decoder.layers.2.linear1.bias", "head.decoder.2.feedforward.linear1.bias"),
    ("transformer.decoder.layers.2.norm3.bias", "head.decoder.2.feedforward.norm.bias"),
    ("transformer.decoder.norm.bias", "head.norm.bias"),
    ("transformer.enc_output_norm.12.bias", "head.proposers.12.content.1.bias"),
    ("refpoint_embed.weight", "head.references"),
]


@pytest.mark.parametrize(("source", "own"), NAMES)
def test_names_of_the_authors(source: str, own: str) -> None:
    assert list(convert_keys({source: torch.zeros(1)})) == [own]


def test_queries_keys_and_values_in_one_matrix_and_groups_one_after_the_other() -> None:
    key = "backbone.0.encoder.blocks.0.attn.qkv.weight"
    converted = convert_keys({key: torch.arange(6.0).reshape(6, 1)})
    assert {name: tensor.flatten().tolist() for name, tensor in converted.items()} == {
        "backbone.block1.attention.q.weight": [0, 1],
        "backbone.block1.attention.k.weight": [2, 3],
        "backbone.block1.attention.v.weight": [4, 5],
    }
    heads = {f"transformer.enc_out_class_embed.{group}.bias": torch.zeros(1) for group in range(2)}
    converted = convert_keys({"query_feat.weight": torch.arange(8.0).reshape(4, 2), **heads})
    assert converted["head.queries"].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_what_has_no_effect_is_left_out() -> None:
    """The token of masked patches, and a block after the last level."""
    names = ["embeddings.mask_token", *(f"encoder.layer.{number}.norm1.bias" for number in (10, 11))]
    state = {f"backbone.0.encoder.encoder.{name}": torch.zeros(1) for name in names}
    fields: dict[str, Any] = {"name": "dinov2", "taps": (2, 5, 8, 11)}
    assert list(convert_for(state, LWDETRConfig(backbone=fields))) == [  # type: ignore[arg-type]
        "backbone.block11.norm1.bias"
    ]


def test_a_name_of_another_model() -> None:
    with pytest.raises(UserError, match=r"'transformer\.level_embed' is no key of an LW-DETR or RF-DETR"):
        convert_keys({"transformer.level_embed": torch.zeros(1)})


LW_DETR = {"hidden_size": 192, "num_hidden_layers": 10, "window_block_indices": [0, 1, 3, 6, 7, 9]}
RF_DETR = {"hidden_size": 384, "num_attention_heads": 6, "patch_size": 16, "num_windows": 2}


def published(name: str) -> dict[str, Any]:
    """Hugging Face's configuration, by the figures of the scripts that converted the authors' weights."""
    from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig
    from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

    large = {"d_model": 384, "decoder_self_attention_heads": 12, "decoder_cross_attention_heads": 24}
    match name:
        case "lw_detr_small":
            backbone = LwDetrViTConfig(**LW_DETR, out_indices=[3, 5, 6, 10])
            config = transformers.LwDetrConfig(
                backbone_config=backbone, projector_scale_factors=[1.0], decoder_n_points=2
            )
        case "lw_detr_xlarge":
            backbone = LwDetrViTConfig(**{**LW_DETR, "hidden_size": 768}, out_indices=[3, 5, 6, 10])
            config = transformers.LwDetrConfig(backbone_config=backbone, projector_scale_factors=[2.0, 0.5], **large)
        case _:
            backbone = RfDetrDinov2Config(**RF_DETR, image_size=384, out_indices=[3, 6, 9, 12])
            config = transformers.RfDetrConfig(backbone_config=backbone, decoder_layers=2, decoder_n_points=2)
    plain: dict[str, Any] = config.to_dict()
    return plain


@pytest.mark.parametrize("name", ["lw_detr_small", "lw_detr_xlarge", "rf_detr_nano"])
def test_the_published_configurations(name: str) -> None:
    """Those of configs/coco, but for what concerns training alone."""
    expected = load_config(ROOT / f"configs/coco/{name}.yaml", RunConfig).model
    assert isinstance(expected, LWDETRConfig)
    backbone = expected.backbone.model_copy(update={"drop_path": 0.0})
    resize = expected.input.resize.model_copy(update={"train_sizes": ()})
    image_input = expected.input.model_copy(update={"resize": resize})
    assert hf_config(published(name)) == expected.model_copy(update={"backbone": backbone, "input": image_input})


def test_what_detkit_lacks_is_refused() -> None:
    plain = published("rf_detr_nano")
    with pytest.raises(UserError, match="use_swiglu_ffn: detkit has False only, found True"):
        hf_config({**plain, "backbone_config": {**plain["backbone_config"], "use_swiglu_ffn": True}})
    with pytest.raises(UserError, match=r"hidden_expansion: detkit has 0\.5 only, found 1\.0"):
        hf_config({**plain, "hidden_expansion": 1.0})

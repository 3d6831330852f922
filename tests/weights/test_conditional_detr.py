"""Names of parameters of Conditional, DAB- and DN-DETR at their publishers; whole models are in tests/parity."""

import pytest
import torch

from detkit.config import UserError
from detkit.weights import conditional_detr, dab_detr


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("transformer.decoder.layers.3.sa_qpos_proj.bias", "head.decoder.layers.3.self_attention.q_pos.bias"),
        ("model.decoder.layers.3.sa_v_proj.bias", "head.decoder.layers.3.self_attention.v.bias"),  # transformers 4
        ("model.decoder.layers.3.self_attn.v_proj.bias", "head.decoder.layers.3.self_attention.v.bias"),  # 5
        ("transformer.decoder.layers.0.ca_qpos_sine_proj.bias", "head.decoder.layers.0.cross_attention.q_sine.bias"),
        ("transformer.decoder.layers.0.cross_attn.out_proj.bias", "head.decoder.layers.0.cross_attention.out.bias"),
        ("model.decoder.layers.0.encoder_attn.out_proj.bias", "head.decoder.layers.0.cross_attention.out.bias"),
        ("transformer.decoder.layers.0.norm2.bias", "head.decoder.layers.0.cross_norm.bias"),
        ("transformer.decoder.query_scale.layers.1.bias", "head.decoder.scale.2.bias"),
        ("model.decoder.ref_point_head.layers.1.bias", "head.decoder.reference.2.bias"),
        ("query_embed.weight", "head.queries"),
        ("backbone.0.body.layer4.2.conv3.weight", "backbone.layer4.2.conv3.weight"),
    ],
)
def test_conditional_detr(source: str, own: str) -> None:
    assert list(conditional_detr.convert_keys({source: torch.zeros(1)})) == [own]


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("transformer.encoder.layers.5.activation.weight", "head.encoder.layers.5.feedforward.act.weight"),
        ("model.decoder.layers.5.mlp.activation_fn.weight", "head.decoder.layers.5.feedforward.act.weight"),
        ("transformer.encoder.query_scale.layers.0.weight", "head.encoder.scale.0.weight"),
        ("transformer.decoder.ref_anchor_head.layers.1.weight", "head.decoder.sides.2.weight"),
        ("transformer.decoder.bbox_embed.layers.2.bias", "head.decoder.regressor.4.bias"),
        ("bbox_embed.layers.2.bias", "head.decoder.regressor.4.bias"),
        ("model.decoder.bbox_embed.layers.2.bias", "head.decoder.regressor.4.bias"),
        ("bbox_predictor.layers.2.bias", "head.decoder.regressor.4.bias"),
        ("refpoint_embed.weight", "head.anchors"),
        ("label_enc.weight", "head.label_embed.weight"),
    ],
)
def test_dab_and_dn_detr(source: str, own: str) -> None:
    assert list(dab_detr.convert_keys({source: torch.zeros(1)})) == [own]


def test_a_name_of_another_model() -> None:
    with pytest.raises(UserError, match=r"'transformer\.level_embed' is no key of a DAB-DETR"):
        dab_detr.convert_keys({"transformer.level_embed": torch.zeros(1)})


def test_what_detkit_lacks_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(UserError, match="num_patterns: detkit has 0 only, found 3"):
        dab_detr.hf_config(transformers.DabDetrConfig(num_patterns=3).to_dict())
    with pytest.raises(UserError, match="temperature_width: detkit has that of the height only, 20"):
        dab_detr.hf_config(transformers.DabDetrConfig(temperature_width=30).to_dict())
    with pytest.raises(UserError, match="position_embedding_type: detkit has 'sine' only, found 'learned'"):
        conditional_detr.hf_config(transformers.ConditionalDetrConfig(position_embedding_type="learned").to_dict())

"""Public Deformable DETR checkpoints -> detkit's: Hugging Face's `DeformableDetrForObjectDetection`, the authors'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detkit.detectors.deformable_detr import DeformableDETRConfig
from detkit.nn.deformable import DeformableTransformerConfig
from detkit.nn.heads.deformable_detr import DeformableDETRHeadConfig
from detkit.nn.necks.projection import ProjectionConfig
from detkit.weights.detr import HUGGING_FACE_BACKBONES, rename
from detkit.weights.hugging_face_config import require, resnet_of, transformer_fields

_ATTENTION = {
    "sampling_offsets": "offsets",
    "attention_weights": "weights",
    "value_proj": "value",
    "output_proj": "out",
}
_LAYERS = [  # encoder or decoder, name of the authors, of Hugging Face (`mlp.` from transformers 5 on), converted
    *(("encoder", f"self_attn.{name}", f"self_attn.{name}", f"attention.{own}") for name, own in _ATTENTION.items()),
    ("encoder", "norm1", "self_attn_layer_norm", "norm"),
    ("encoder", "linear1", r"(?:mlp\.)?fc1", "feedforward.linear1"),
    ("encoder", "linear2", r"(?:mlp\.)?fc2", "feedforward.linear2"),
    ("encoder", "norm2", "final_layer_norm", "feedforward.norm"),
    ("decoder", "self_attn", "self_attn", "self_attention"),
    ("decoder", "norm2", "self_attn_layer_norm", "self_norm"),
    *(
        ("decoder", f"cross_attn.{name}", f"encoder_attn.{name}", f"cross_attention.{own}")
        for name, own in _ATTENTION.items()
    ),
    ("decoder", "norm1", "encoder_attn_layer_norm", "cross_norm"),
    ("decoder", "linear1", r"(?:mlp\.)?fc1", "feedforward.linear1"),
    ("decoder", "linear2", r"(?:mlp\.)?fc2", "feedforward.linear2"),
    ("decoder", "norm3", "final_layer_norm", "feedforward.norm"),
]
_PARTS = [  # pattern of the authors, of Hugging Face, converted
    (r"input_proj\.(\d)\.0\.", r"model\.input_proj\.(\d)\.0\.", r"neck.levels.\1."),
    (r"input_proj\.(\d)\.1\.", r"model\.input_proj\.(\d)\.1\.", r"neck.norms.\1."),
    (r"query_embed\.weight", r"model\.query_position_embeddings\.weight", "head.queries"),
    (r"transformer\.level_embed", r"model\.level_embed", "head.encoder.level_embed"),
    (r"transformer\.reference_points\.", r"model\.reference_points\.", "head.reference."),
    (r"transformer\.enc_output\.", r"model\.enc_output\.", "head.proposer.content.0."),
    (r"transformer\.enc_output_norm\.", r"model\.enc_output_norm\.", "head.proposer.content.1."),
    (r"transformer\.pos_trans\.", r"model\.pos_trans\.", "head.query.0."),
    (r"transformer\.pos_trans_norm\.", r"model\.pos_trans_norm\.", "head.query.1."),
    (r"class_embed\.(\d)\.", r"class_embed\.(\d)\.", r"head.classifiers.\1."),
    *(
        (rf"bbox_embed\.(\d)\.layers\.{i}\.", rf"bbox_embed\.(\d)\.layers\.{i}\.", rf"head.regressors.\1.{2 * i}.")
        for i in range(3)
    ),
    *(
        (
            rf"transformer\.{part}\.layers\.(\d+)\.{re.escape(authors)}\.",
            rf"model\.{part}\.layers\.(\d+)\.{hugging_face}\.",
            rf"head.{part}.layers.\1.{converted}." if part == "encoder" else rf"head.{part}.\1.{converted}.",
        )
        for part, authors, hugging_face, converted in _LAYERS
    ),
]
_AGAIN = r"(?:transformer|model)\.decoder\.((?:class|bbox)_embed\.)"  # the same tensors under a second name
AUTHORS_KEYS = [(r"backbone\.0\.body\.", "backbone."), *((source, converted) for source, _, converted in _PARTS)]
HUGGING_FACE_KEYS = [*HUGGING_FACE_BACKBONES, *((source, converted) for _, source, converted in _PARTS)]


def hf_config(config: dict[str, Any]) -> DeformableDETRConfig:
    """From the config.json of Hugging Face's. Raises UserError for what detkit lacks."""
    points, levels, two_stage = config["encoder_n_points"], config["num_feature_levels"], config["two_stage"]
    require(config, position_embedding_type="sine", num_channels=3, decoder_n_points=points)
    strides = (8, 16, 32) if levels > 1 else (32,)
    transformer = DeformableTransformerConfig(**transformer_fields(config), points=points)
    head = DeformableDETRHeadConfig(
        transformer=transformer,
        num_queries=config["two_stage_num_proposals"] if two_stage else config["num_queries"],
        refine=config["with_box_refine"],
        two_stage=two_stage,
    )
    neck = ProjectionConfig(out_channels=transformer.width, extra_levels=levels - len(strides))
    return DeformableDETRConfig(backbone=resnet_of(config, strides), neck=neck, head=head)


def convert_keys(state: Mapping[str, Tensor], *, refine: bool) -> dict[str, Tensor]:
    """A state dict of either publisher with detkit's keys. Raises UserError for a key that neither of them has.

    refine  whether each decoder layer has predictions of its own
    """
    rules = HUGGING_FACE_KEYS if "model.level_embed" in state else AUTHORS_KEYS
    once = {re.sub(_AGAIN, r"\1", key): tensor for key, tensor in state.items()}
    converted = rename(once, rules, "a Deformable DETR that detkit converts")
    if not refine:  # the published model lists its one head once for each layer
        again = re.compile(r"head\.(classifiers|regressors)\.[1-9]")
        return {key: tensor for key, tensor in converted.items() if not again.match(key)}
    for key in [key for key in converted if key.startswith("head.regressors.") and key.endswith(".0.bias")]:
        number = key.split(".")[2]  # Hugging Face may write one classifier for all layers
        for name in ("weight", "bias"):
            converted.setdefault(f"head.classifiers.{number}.{name}", converted[f"head.classifiers.0.{name}"])
    if "head.query.0.weight" not in converted:
        return converted
    last = max(int(key.split(".")[2]) for key in converted if key.startswith("head.regressors."))  # the encoder's
    names = {f"head.{part}s.{last}.": f"head.proposer.{part}." for part in ("classifier", "regressor")}
    return {
        next((new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)), key): tensor
        for key, tensor in converted.items()
    }


def refines(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict of either publisher has predictions of its own for each decoder layer."""
    name = "bbox_embed.{}.layers.2.weight"
    heads = [tensor for number in (0, 1) for key, tensor in state.items() if key.endswith(name.format(number))]
    return len(heads) > 1 and not heads[0].equal(heads[-1])

"""Public DAB-DETR checkpoints -> detkit's: Hugging Face's `DabDetrForObjectDetection`, those of the
authors of DAB-DETR and DN-DETR.

Hugging Face keeps the coordinates of anchors 1e-5 from 0 and 1, and the authors 1e-3, as detkit does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detkit.config import UserError
from detkit.detectors.detr import DETRConfig
from detkit.nn.heads.dab_detr import DABDETRHeadConfig, DABTransformerConfig
from detkit.weights.conditional_detr import AUTHORS_RULES, decoder_rules, mlp_rules
from detkit.weights.detr import FACEBOOK_KEYS, HUGGING_FACE_KEYS, rename
from detkit.weights.hugging_face_config import require, resnet_of, transformer_fields

_HUGGING_FACE_RULES = decoder_rules(
    {
        "self_attn.self_attn_query_content_proj": "self_attention.q",
        "self_attn.self_attn_query_pos_proj": "self_attention.q_pos",
        "self_attn.self_attn_key_content_proj": "self_attention.k",
        "self_attn.self_attn_key_pos_proj": "self_attention.k_pos",
        "self_attn.self_attn_value_proj": "self_attention.v",
        "self_attn.self_attn.output_proj": "self_attention.out",
        "self_attn.self_attn_layer_norm": "self_norm",
        "cross_attn.cross_attn_query_content_proj": "cross_attention.q",
        "cross_attn.cross_attn_query_pos_proj": "cross_attention.q_pos",
        "cross_attn.cross_attn_key_content_proj": "cross_attention.k",
        "cross_attn.cross_attn_key_pos_proj": "cross_attention.k_pos",
        "cross_attn.cross_attn_value_proj": "cross_attention.v",
        "cross_attn.cross_attn_query_pos_sine_proj": "cross_attention.q_sine",
        "cross_attn.cross_attn.output_proj": "cross_attention.out",
        "cross_attn.cross_attn_layer_norm": "cross_norm",
        "mlp.activation_fn": "feedforward.act",
        "mlp.final_layer_norm": "feedforward.norm",
    }
)
_KEYS = [
    (r"(?:refpoint_embed|model\.query_refpoint_embeddings)\.weight", "head.anchors"),
    (r"label_enc\.", "head.label_embed."),
    (
        r"(?:transformer|model)\.(encoder|decoder)\.layers\.(\d+)\.activation(?:_fn)?\.",
        r"head.\1.layers.\2.feedforward.act.",
    ),
    # all layers share one, which is listed once more at the top
    *mlp_rules(r"(?:(?:transformer|model)\.decoder\.)?bbox_(?:embed|predictor)", "head.decoder.regressor", 3),
    *mlp_rules(r"(?:transformer|model)\.decoder\.ref_point_head", "head.decoder.position", 2),
    *mlp_rules(r"(?:transformer|model)\.decoder\.ref_anchor_head", "head.decoder.sides", 2),
    *mlp_rules(r"(?:transformer|model)\.encoder\.query_scale", "head.encoder.scale", 2),
    *_HUGGING_FACE_RULES,
    *AUTHORS_RULES,
    *HUGGING_FACE_KEYS,
    *FACEBOOK_KEYS,
]


def hf_config(config: dict[str, Any]) -> DETRConfig:
    """From the config.json of Hugging Face's. Raises UserError for what detkit lacks."""
    require(
        config,
        query_dim=4,
        num_patterns=0,
        keep_query_pos=False,
        normalize_before=False,
        sine_position_embedding_scale=None,
    )
    temperature = config["temperature_height"]
    if config["temperature_width"] != temperature:
        raise UserError(f"temperature_width: detkit has that of the height only, {temperature}")
    head = DABDETRHeadConfig(
        transformer=DABTransformerConfig(**transformer_fields(config)),
        num_queries=config["num_queries"],
        temperature=temperature,
    )
    return DETRConfig(backbone=resnet_of(config, (32,)), head=head)


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of each publisher with detkit's keys. Raises UserError for a key that none of them has."""
    return rename(state, _KEYS, "a DAB-DETR that detkit converts")

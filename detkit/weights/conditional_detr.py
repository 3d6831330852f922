"""Public Conditional DETR checkpoints -> detkit's: Hugging Face's `ConditionalDetrForObjectDetection`, the authors'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detkit.detectors.detr import DETRConfig
from detkit.nn.heads.conditional_detr import ConditionalDETRHeadConfig
from detkit.nn.transformer import TransformerConfig
from detkit.weights.detr import FACEBOOK_KEYS, HUGGING_FACE_KEYS, rename
from detkit.weights.hugging_face_config import require, resnet_of, transformer_fields

Rules = list[tuple[str, str]]


def decoder_rules(names: Mapping[str, str]) -> Rules:
    """names: parts of a decoder layer under a publisher's name, and under detkit's"""
    return [
        (rf"(?:transformer|model)\.decoder\.layers\.(\d+)\.{re.escape(source)}\.", rf"head.decoder.layers.\1.{own}.")
        for source, own in names.items()
    ]


def mlp_rules(source: str, own: str, layers: int) -> Rules:
    """source: pattern of the name of an MLP whose linear layers are `layers.0`, `layers.1`, ..."""
    return [(rf"{source}\.layers\.{number}\.", f"{own}.{2 * number}.") for number in range(layers)]


# Also those of Hugging Face's files before transformers 5, and of DAB-DETR's authors. All others are those of DETR.
AUTHORS_RULES = [
    *decoder_rules(
        {
            "sa_qcontent_proj": "self_attention.q",
            "sa_qpos_proj": "self_attention.q_pos",
            "sa_kcontent_proj": "self_attention.k",
            "sa_kpos_proj": "self_attention.k_pos",
            "sa_v_proj": "self_attention.v",
            "ca_qcontent_proj": "cross_attention.q",
            "ca_qpos_proj": "cross_attention.q_pos",
            "ca_kcontent_proj": "cross_attention.k",
            "ca_kpos_proj": "cross_attention.k_pos",
            "ca_v_proj": "cross_attention.v",
            "ca_qpos_sine_proj": "cross_attention.q_sine",
            "cross_attn": "cross_attention",
        }
    ),
    *mlp_rules(r"(?:transformer|model)\.decoder\.query_scale", "head.decoder.scale", 2),
]
_HUGGING_FACE_RULES = decoder_rules(
    {
        "self_attn.q_content_proj": "self_attention.q",
        "self_attn.q_pos_proj": "self_attention.q_pos",
        "self_attn.k_content_proj": "self_attention.k",
        "self_attn.k_pos_proj": "self_attention.k_pos",
        "encoder_attn.q_content_proj": "cross_attention.q",
        "encoder_attn.q_pos_proj": "cross_attention.q_pos",
        "encoder_attn.k_content_proj": "cross_attention.k",
        "encoder_attn.k_pos_proj": "cross_attention.k_pos",
        "encoder_attn.q_pos_sine_proj": "cross_attention.q_sine",
    }
)
_KEYS = [
    *AUTHORS_RULES,
    *_HUGGING_FACE_RULES,
    *mlp_rules(r"(?:transformer|model)\.decoder\.ref_point_head", "head.decoder.reference", 2),
    *HUGGING_FACE_KEYS,
    *FACEBOOK_KEYS,
]


def hf_config(config: dict[str, Any]) -> DETRConfig:
    """From the config.json of Hugging Face's. Raises UserError for what detkit lacks."""
    require(config, position_embedding_type="sine", num_channels=3)
    transformer = TransformerConfig(**transformer_fields(config))
    head = ConditionalDETRHeadConfig(transformer=transformer, num_queries=config["num_queries"])
    return DETRConfig(backbone=resnet_of(config, (32,)), head=head)


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of either publisher with detkit's keys. Raises UserError for a key that neither of them has."""
    return rename(state, _KEYS, "a Conditional DETR that detkit converts")

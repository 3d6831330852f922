"""Public LW-DETR and RF-DETR checkpoints -> detkit's: the authors' `.pth`, and Hugging Face's
`LwDetrForObjectDetection` and `RfDetrForObjectDetection`, which writes files with the authors' names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detkit.config import UserError
from detkit.detectors.lw_detr import LWDETRConfig, LWDETRInputConfig
from detkit.nn.backbones.vit import MOST_LAYERS, DINOv2Config, ViTConfig
from detkit.nn.heads.lw_detr import LWDETRHeadConfig, LWDETRTransformerConfig
from detkit.nn.input import StretchConfig
from detkit.nn.necks.c2f_projector import C2fProjectorConfig
from detkit.weights.detr import rename
from detkit.weights.hugging_face_config import activation_of, require

_BLOCK = [  # pattern of either publisher, converted
    (r"(?:layernorm_before|norm1)\.", "norm1."),
    (r"(?:layernorm_after|norm2)\.", "norm2."),
    (r"(?:gamma_|layer_scale)1(?:\.lambda1)?", "scale1"),
    (r"(?:gamma_|layer_scale)2(?:\.lambda1)?", "scale2"),
    (r"attention\.(?:attention\.query|q_proj)\.", "attention.q."),
    (r"attention\.(?:attention\.key|k_proj)\.", "attention.k."),
    (r"attention\.(?:attention\.value|v_proj)\.", "attention.v."),
    (r"(?:attention\.(?:output(?:\.dense)?|o_proj)|attn\.proj)\.", "attention.out."),
    (r"attn\.qkv\.", "attention.in_proj_"),
    (r"attn\.q_bias", "attention.q.bias"),
    (r"attn\.v_bias", "attention.v.bias"),
    (r"(?:intermediate|mlp)\.fc1\.", "mlp.0."),
    (r"(?:intermediate|mlp)\.fc2\.", "mlp.2."),
]
_BACKBONE = r"(?:model\.backbone\.backbone|backbone\.0\.encoder(?:\.encoder)?)\."
_SCALE = r"(?:model\.backbone\.projector\.scale_layers|backbone\.0\.projector\.stages)\.(\d)\."
_SAMPLERS = (
    r"(?:model\.backbone\.projector\.scale_layers\.(\d)\.sampling_layers\.(\d)\.layers"
    r"|backbone\.0\.projector\.stages_sampling\.(\d)\.(\d))\."
)
_LAYER = [
    (r"self_attn\.", "self_attention."),
    (r"(?:self_attn_layer_norm|norm1)\.", "self_norm."),
    (r"cross_attn\.sampling_offsets\.", "cross_attention.offsets."),
    (r"cross_attn\.attention_weights\.", "cross_attention.weights."),
    (r"cross_attn\.value_proj\.", "cross_attention.value."),
    (r"cross_attn\.output_proj\.", "cross_attention.out."),
    (r"(?:cross_attn_layer_norm|norm2)\.", "cross_norm."),
    (r"(?:mlp\.fc|linear)([12])\.", r"feedforward.linear\2."),
    (r"(?:layer_norm|norm3)\.", "feedforward.norm."),
]
_HEAD = r"(?:model|transformer)\."
KEYS = [
    (_BACKBONE + r"(?:embeddings\.position_embeddings|pos_embed)", "backbone.patches.positions"),
    (_BACKBONE + r"embeddings\.cls_token", "backbone.patches.class_token"),
    (
        _BACKBONE + r"(?:embeddings\.(?:patch_embeddings\.)?projection|patch_embed\.proj)\.",
        "backbone.patches.projection.",
    ),
    (_BACKBONE + r"layernorm\.", "backbone.norm."),
    *((_BACKBONE + rf"(?:encoder\.layer|blocks)\.(\d+)\.{part}", rf"backbone.block\1.{own}") for part, own in _BLOCK),
    (_SAMPLERS, r"neck.samplers.\1\3.\2\4."),
    *(
        (_SCALE + rf"(?:projector_layer\.conv|0\.cv){number}\.", rf"neck.fuse.\1.{own}.")
        for number, own in ((1, "reduce"), (2, "merge"))
    ),
    *(
        (
            _SCALE + rf"(?:projector_layer\.bottlenecks|0\.m)\.(\d)\.(?:conv|cv){number}\.",
            rf"neck.fuse.\1.blocks.\2.{number - 1}.",
        )
        for number in (1, 2)
    ),
    (_SCALE + r"(?:layer_norm|1)\.", r"neck.norms.\1."),
    (r"(?:model\.reference_point_embed|refpoint_embed)\.weight", "head.references"),
    (r"(?:model\.)?query_feat\.weight", "head.queries"),
    *((_HEAD + rf"decoder\.layers\.(\d)\.{part}", rf"head.decoder.\1.{own}") for part, own in _LAYER),
    (_HEAD + r"decoder\.(?:layernorm|norm)\.", "head.norm."),
    *((_HEAD + rf"decoder\.ref_point_head\.layers\.{i}\.", f"head.query_pos.{2 * i}.") for i in range(2)),
    (_HEAD + r"enc_output\.(\d+)\.", r"head.proposers.\1.content.0."),
    (_HEAD + r"enc_output_norm\.(\d+)\.", r"head.proposers.\1.content.1."),
    (_HEAD + r"enc_out_class_embed\.(\d+)\.", r"head.proposers.\1.classifier."),
    *(
        (_HEAD + rf"enc_out_bbox_embed\.(\d+)\.layers\.{i}\.", rf"head.proposers.\1.regressor.{2 * i}.")
        for i in range(3)
    ),
    (r"class_embed\.", "head.classifier."),
    *((rf"bbox_embed\.layers\.{i}\.", f"head.regressor.{2 * i}.") for i in range(3)),
]


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of either publisher with detkit's keys. Raises UserError for a key that neither of them has.

    The token of masked patches, with which DINOv2 was trained, is left out.
    """
    weights = {_in_one_form(key): tensor for key, tensor in state.items() if not key.endswith("mask_token")}
    converted = rename(weights, KEYS, "an LW-DETR or RF-DETR that detkit converts")
    groups = len([key for key in converted if re.fullmatch(r"head\.proposers\.\d+\.classifier\.bias", key)])
    for name in ("head.queries", "head.references"):
        if groups and name in converted:
            converted[name] = converted[name].reshape(groups, -1, converted[name].shape[1])
    return converted


def convert_for(state: Mapping[str, Tensor], config: LWDETRConfig) -> dict[str, Tensor]:
    """`convert_keys` without the blocks after the last level, which have weights in RF-DETR base and no effect."""
    assert isinstance(config.backbone, ViTConfig | DINOv2Config)
    left_out = [f"backbone.block{number + 1}." for number in range(config.backbone.taps[-1], config.backbone.layers)]
    return {key: tensor for key, tensor in convert_keys(state).items() if not key.startswith(tuple(left_out))}


def _in_one_form(key: str) -> str:
    """Blocks counted from 1, norms of the projector under one name, and a single scale as the first of several."""
    key = re.sub(r"(encoder\.layer|blocks)\.(\d+)\.", lambda match: f"{match[1]}.{int(match[2]) + 1}.", key)
    key = re.sub(r"(projector\..*)\.bn\.", r"\1.norm.", key)
    return re.sub(r"(backbone\.projector)\.(projector_layer|layer_norm)\.", r"\1.scale_layers.0.\2.", key)


def hf_config(config: dict[str, Any]) -> LWDETRConfig:
    """From the config.json of Hugging Face's, `lw_detr` or `rf_detr`. Raises UserError for what detkit lacks.

    Dropout is that of the authors, none, and not that of config.json.
    """
    require(config, hidden_expansion=0.5, activation_function="silu", batch_norm_eps=1e-5, attention_bias=True)
    act: Any = activation_of(config["decoder_activation_function"])
    width, rf_detr = config["d_model"], config["model_type"] == "rf_detr"
    transformer = LWDETRTransformerConfig(
        width=width,
        heads=config["decoder_self_attention_heads"],
        cross_heads=config["decoder_cross_attention_heads"],
        decoder_layers=config["decoder_layers"],
        feedforward=config["decoder_ffn_dim"],
        points=config["decoder_n_points"],
        act=act,
    )
    neck = C2fProjectorConfig(
        width=width,
        scales=tuple(config.get("projector_scale_factors") or (1.0,)),
        blocks=config["c2f_num_blocks"],
        norm="ln" if rf_detr else "bn",
    )
    head = LWDETRHeadConfig(transformer=transformer, num_queries=config["num_queries"], groups=config["group_detr"])
    inner = config["backbone_config"]
    if not rf_detr:
        return LWDETRConfig(backbone=_vit_of(inner), neck=neck, head=head)
    resize = StretchConfig(size=inner["image_size"])
    return LWDETRConfig(backbone=_dinov2_of(inner), neck=neck, head=head, input=LWDETRInputConfig(resize=resize))


def _vit_of(config: Mapping[str, Any]) -> ViTConfig:
    require(
        config,
        model_type="lw_detr_vit",
        mlp_ratio=4,
        hidden_act="gelu",
        dropout_prob=0.0,
        layer_norm_eps=1e-6,
        num_channels=3,
        qkv_bias=True,
        use_absolute_position_embeddings=True,
    )
    layers, windowed = config["num_hidden_layers"], config["window_block_indices"]
    if not isinstance(layers, int) or layers > MOST_LAYERS:
        raise UserError(f"num_hidden_layers: expected at most {MOST_LAYERS}, found {layers!r}")
    return ViTConfig(
        **_sizes_of(config),
        windows=math.isqrt(config["num_windows"]),
        positions=_cells(config, "pretrain_image_size"),
        global_blocks=tuple(number + 1 for number in range(layers) if number not in windowed),
    )


def _dinov2_of(config: Mapping[str, Any]) -> DINOv2Config:
    require(
        config,
        mlp_ratio=4,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        num_channels=3,
        num_register_tokens=0,
        qkv_bias=True,
        use_swiglu_ffn=False,
        apply_layernorm=True,
    )
    return DINOv2Config(**_sizes_of(config), windows=config["num_windows"], positions=_cells(config, "image_size"))


def _cells(config: Mapping[str, Any], name: str) -> int:
    """Patches a side of a picture whose size is the field `name`."""
    size, patch = config[name], config["patch_size"]
    if not isinstance(size, int) or not isinstance(patch, int) or patch < 1:
        raise UserError(f"{name}, patch_size: expected whole numbers of pixels, found {size!r} and {patch!r}")
    return size // patch


def _sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both backbones have."""
    taps = config.get("out_indices") or [int(name.removeprefix("stage")) for name in config["out_features"]]
    return {
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "patch": config["patch_size"],
        "taps": tuple(taps),
        "strides": (config["patch_size"],) * len(taps),
    }

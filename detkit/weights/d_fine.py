"""Public D-FINE checkpoints, and those of DEIM on it -> detkit's: the authors' `.pth`, and Hugging Face's
`DFineForObjectDetection`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detkit.config import UserError
from detkit.detectors.d_fine import DFINEConfig, DFINENeckConfig
from detkit.nn.backbones.timm import TimmConfig
from detkit.nn.distributions import EdgeConfig
from detkit.nn.heads.d_fine import DFINEDenoisingConfig, DFINEHeadConfig, DFINETransformerConfig
from detkit.weights.detr import rename
from detkit.weights.hugging_face_config import activation_of, require
from detkit.weights.rt_detr import HEAD, NECK, mlp

_BLOCK = [  # of the authors, of Hugging Face, converted
    (r"cv1\.", r"conv1\.", "reduce."),
    *(
        (rf"cv{stage + 2}\.0\.{source}", rf"csp_rep{stage + 1}\.{source}", f"stages.{stage}.0.{own}")
        for stage in range(2)
        for source, own in (
            (r"conv1\.", "main."),
            (r"conv2\.", "side."),
            (r"bottlenecks\.(\d+)\.conv1\.", r"blocks.\2.large."),
            (r"bottlenecks\.(\d+)\.conv2\.", r"blocks.\2.small."),
        )
    ),
    *((rf"cv{stage + 2}\.1\.", rf"conv{stage + 2}\.", f"stages.{stage}.1.") for stage in range(2)),
    (r"cv4\.", r"conv4\.", "merge."),
]
_LAYER = r"decoder\.layers\.(\d)\."
_PARTS = [
    *(
        (
            rf"encoder\.downsample_convs\.(\d)\.0\.cv{number + 1}\.",
            rf"model\.encoder\.downsample_convs\.(\d)\.conv{number + 1}\.",
            rf"neck.down.\1.{number}.",
        )
        for number in range(2)
    ),
    *(
        (rf"encoder\.{blocks}\.(\d)\.{authors}", rf"model\.encoder\.{blocks}\.(\d)\.{hugging_face}", f"{own}.{part}")
        for blocks, own in (("fpn_blocks", r"neck.top_down.\1"), ("pan_blocks", r"neck.bottom_up.\1"))
        for authors, hugging_face, part in _BLOCK
    ),
    (rf"decoder\.{_LAYER}gateway\.gate\.", rf"model\.{_LAYER}gateway\.gate\.", r"head.decoder.\1.gates."),
    (rf"decoder\.{_LAYER}gateway\.norm\.", rf"model\.{_LAYER}gateway\.norm\.", r"head.decoder.\1.cross_norm."),
    *(
        (
            rf"decoder\.{_LAYER}linear{number + 1}\.",
            rf"model\.{_LAYER}mlp\.layers\.{number}\.",
            rf"head.decoder.\1.feedforward.linear{number + 1}.",
        )
        for number in range(2)
    ),
    *mlp(r"decoder\.pre_bbox_head", r"model\.decoder\.pre_bbox_head", "head.first_regressor", 3),
    *mlp(
        r"decoder\.decoder\.lqe_layers\.(\d)\.reg_conf",
        r"model\.decoder\.lqe_layers\.(\d)\.reg_conf",
        r"head.qualities.\1.mlp",
        2,
    ),
    *NECK,
    *HEAD,
]
_ENCODER_LAYER = r"model\.encoder\.aifi\.0\.layers\.(\d)\.mlp\.layers"
_TRUNK = r"model\.backbone\.model\."
AUTHORS_KEYS = [
    (r"backbone\.stages\.", "backbone.network.stages_"),
    (r"backbone\.", "backbone.network."),
    *((source, own) for source, _, own in _PARTS),
]
HUGGING_FACE_KEYS = [
    (_TRUNK + r"embedder\.", "backbone.network.stem."),
    (_TRUNK + r"encoder\.stages\.", "backbone.network.stages_"),
    *((rf"{_ENCODER_LAYER}\.{i}\.", rf"neck.encoder.layers.\1.feedforward.linear{i + 1}.") for i in range(2)),
    *((source, own) for _, source, own in _PARTS),
]
CONSTANTS = re.compile(r".*(?:decoder\.(?:up|reg_scale|anchors|valid_mask|project)|num_points_scale)")


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of either publisher with detkit's keys. Raises UserError for a key that neither of them has."""
    weights = {key: tensor for key, tensor in state.items() if not CONSTANTS.fullmatch(key)}
    hugging_face = any(key.startswith("model.") for key in weights)
    if hugging_face:
        weights = {_as_timm(key): tensor for key, tensor in weights.items()}
    return rename(weights, HUGGING_FACE_KEYS if hugging_face else AUTHORS_KEYS, "a D-FINE that detkit converts")


def _as_timm(key: str) -> str:
    """The layers of a backbone of Hugging Face by the names of the authors and of timm."""
    if not key.startswith("model.backbone."):
        return key
    return key.replace(".convolution.", ".conv.").replace(".normalization.", ".bn.")


BACKBONES = {  # channels of the stem in transformers
    (3, 16, 16): "hgnetv2_b0",
    (3, 24, 32): "hgnetv2_b2",
    (3, 32, 48): "hgnetv2_b4",
    (3, 32, 64): "hgnetv2_b5",
}


def hf_config(config: dict[str, Any]) -> DFINEConfig:
    """From the config.json of Hugging Face's `d_fine`. Raises UserError for what detkit lacks."""
    strides = tuple(config["feat_strides"])
    require(
        config,
        num_feature_levels=len(strides),
        encode_proj_layers=[len(strides) - 1],
        encoder_activation_function="gelu",
        activation_function="silu",
        normalize_before=False,
        learn_initial_query=False,
        with_box_refine=True,
        decoder_offset_scale=0.5,
        decoder_method="default",
        eval_idx=-1,
        layer_scale=1,
        top_prob_values=4,
        lqe_hidden_dim=64,
        lqe_layers=2,
        layer_norm_eps=1e-5,
        batch_norm_eps=1e-5,
    )
    neck = DFINENeckConfig(
        width=config["encoder_hidden_dim"],
        heads=config["encoder_attention_heads"],
        layers=config["encoder_layers"],
        feedforward=config["encoder_ffn_dim"],
        dropout=float(config.get("dropout", 0.0)),
        temperature=float(config["positional_encoding_temperature"]),
        expansion=config["hidden_expansion"],
        depth=config["depth_mult"],
    )
    return DFINEConfig(backbone=_backbone_of(config, strides), neck=neck, head=_head_of(config))


def _backbone_of(config: Mapping[str, Any], strides: tuple[int, ...]) -> TimmConfig:
    inner = config["backbone_config"]
    require(inner, model_type="hgnet_v2", hidden_act="relu", num_channels=3)
    stem = tuple(inner.get("stem_channels", (3, 32, 48)))
    if stem not in BACKBONES:
        raise UserError(f"backbone_config: detkit has {', '.join(BACKBONES.values())}, found stem_channels {stem}")
    norm: Any = "frozen_bn" if config["freeze_backbone_batch_norms"] else "bn"
    return TimmConfig(model=BACKBONES[stem], norm=norm, strides=strides)


def _head_of(config: Mapping[str, Any]) -> DFINEHeadConfig:
    act: Any = activation_of(config["decoder_activation_function"])
    points = config["decoder_n_points"]
    transformer = DFINETransformerConfig(
        width=config["d_model"],
        heads=config["decoder_attention_heads"],
        decoder_layers=config["decoder_layers"],
        feedforward=config["decoder_ffn_dim"],
        dropout=float(config.get("dropout", 0.0)),
        act=act,
        points=points if isinstance(points, int) else tuple(points),
    )
    denoising = None
    if config["num_denoising"]:
        denoising = DFINEDenoisingConfig(
            queries=config["num_denoising"],
            label_noise=config["label_noise_ratio"] / 2,  # the published code halves it
            box_noise=config["box_noise_scale"],
        )
    edges = EdgeConfig(steps=config["max_num_bins"], reach=config["up"], scale=config["reg_scale"])
    return DFINEHeadConfig(transformer=transformer, num_queries=config["num_queries"], edges=edges, denoising=denoising)

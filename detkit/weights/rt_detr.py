"""Public RT-DETR and RT-DETRv2 checkpoints -> detkit's: the authors' `.pth`, and Hugging Face's
`RTDetrForObjectDetection` and `RTDetrV2ForObjectDetection`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detkit.config import UserError
from detkit.detectors.rt_detr import RTDETRConfig
from detkit.nn.backbones.resnet_vd import ResNetVDConfig, convert_published
from detkit.nn.denoising import DenoisingConfig
from detkit.nn.heads.rt_detr import RTDETRHeadConfig, RTDETRTransformerConfig
from detkit.nn.necks.hybrid_encoder import HybridEncoderConfig
from detkit.weights.detr import rename
from detkit.weights.hugging_face_config import activation_of, require

_ATTENTION = {
    "sampling_offsets": "offsets",
    "attention_weights": "weights",
    "value_proj": "value",
    "output_proj": "out",
}
# name of the authors, of Hugging Face (`mlp.` from transformers 5 on), converted
ENCODER_LAYER = [
    ("self_attn", "self_attn", "attention"),
    ("norm1", "self_attn_layer_norm", "norm"),
    ("linear1", r"(?:mlp\.)?fc1", "feedforward.linear1"),
    ("linear2", r"(?:mlp\.)?fc2", "feedforward.linear2"),
    ("norm2", "final_layer_norm", "feedforward.norm"),
]
DECODER_LAYER = [
    ("self_attn", "self_attn", "self_attention"),
    ("norm1", "self_attn_layer_norm", "self_norm"),
    *((f"cross_attn.{name}", f"encoder_attn.{name}", f"cross_attention.{own}") for name, own in _ATTENTION.items()),
    ("norm2", "encoder_attn_layer_norm", "cross_norm"),
    ("linear1", r"(?:mlp\.)?fc1", "feedforward.linear1"),
    ("linear2", r"(?:mlp\.)?fc2", "feedforward.linear2"),
    ("norm3", "final_layer_norm", "feedforward.norm"),
]
_CSP = [
    (r"conv1\.", "main."),
    (r"conv2\.", "side."),
    (r"conv3\.", "merge."),
    (r"bottlenecks\.(\d+)\.conv1\.", r"blocks.\2.large."),
    (r"bottlenecks\.(\d+)\.conv2\.", r"blocks.\2.small."),
]
NECK = [  # pattern of the authors, of Hugging Face, converted: what RT-DETR and D-FINE share
    (r"encoder\.input_proj\.(\d)\.(?:0|conv)\.", r"model\.encoder_input_proj\.(\d)\.0\.", r"neck.project.\1.conv."),
    (r"encoder\.input_proj\.(\d)\.(?:1|norm)\.", r"model\.encoder_input_proj\.(\d)\.1\.", r"neck.project.\1.norm."),
    *(
        (
            rf"encoder\.encoder\.0\.layers\.(\d)\.{authors}\.",
            rf"model\.encoder\.(?:aifi|encoder)\.0\.layers\.(\d)\.{hugging_face}\.",
            rf"neck.encoder.layers.\1.{own}.",
        )
        for authors, hugging_face, own in ENCODER_LAYER
    ),
    (r"encoder\.lateral_convs\.(\d)\.", r"model\.encoder\.lateral_convs\.(\d)\.", r"neck.lateral.\1."),
]
_FUSION = [
    (r"encoder\.downsample_convs\.(\d)\.", r"model\.encoder\.downsample_convs\.(\d)\.", r"neck.down.\1."),
    *(
        (
            rf"encoder\.{blocks}\.(\d)\.{part}",
            rf"model\.encoder\.{blocks}\.(\d)\.{part}",
            rf"neck.{own_blocks}.\1.{own}",
        )
        for blocks, own_blocks in (("fpn_blocks", "top_down"), ("pan_blocks", "bottom_up"))
        for part, own in _CSP
    ),
]


def mlp(authors: str, hugging_face: str, own: str, layers: int) -> list[tuple[str, str, str]]:
    """The rules of an MLP of so many linear layers."""
    return [
        (rf"{authors}\.layers\.{i}\.", rf"{hugging_face}\.layers\.{i}\.", rf"{own}.{2 * i}.") for i in range(layers)
    ]


HEAD = [  # what RT-DETR and D-FINE share
    (r"decoder\.input_proj\.(\d)\.(?:0|conv)\.", r"model\.decoder_input_proj\.(\d)\.0\.", r"head.project.\1.conv."),
    (r"decoder\.input_proj\.(\d)\.(?:1|norm)\.", r"model\.decoder_input_proj\.(\d)\.1\.", r"head.project.\1.norm."),
    (r"decoder\.enc_output\.(?:0|proj)\.", r"model\.enc_output\.0\.", "head.proposer.content.0."),
    (r"decoder\.enc_output\.(?:1|norm)\.", r"model\.enc_output\.1\.", "head.proposer.content.1."),
    (r"decoder\.enc_score_head\.", r"model\.enc_score_head\.", "head.proposer.classifier."),
    *mlp(r"decoder\.enc_bbox_head", r"model\.enc_bbox_head", "head.proposer.regressor", 3),
    (r"decoder\.denoising_class_embed\.", r"model\.denoising_class_embed\.", "head.label_embed."),
    *mlp(r"decoder\.query_pos_head", r"model\.decoder\.query_pos_head", "head.query_pos", 2),
    (r"decoder\.dec_score_head\.(\d)\.", r"(?:model\.decoder\.)?class_embed\.(\d)\.", r"head.classifiers.\1."),
    *mlp(r"decoder\.dec_bbox_head\.(\d)", r"(?:model\.decoder\.)?bbox_embed\.(\d)", r"head.regressors.\1", 3),
    *(
        (
            rf"decoder\.decoder\.layers\.(\d)\.{re.escape(authors)}\.",
            rf"model\.decoder\.layers\.(\d)\.{hugging_face}\.",
            rf"head.decoder.\1.{own}.",
        )
        for authors, hugging_face, own in DECODER_LAYER
    ),
]
_BACKBONE = r"model\.backbone\.model\."
_BLOCK = _BACKBONE + r"encoder\.stages\.{}\.layers\.(\d+)\."
HUGGING_FACE_BACKBONE = [
    *(
        (_BACKBONE + rf"embedder\.embedder\.{i}\.{source}\.", f"backbone.stem.{3 * i + j}.")
        for i in range(3)
        for j, source in enumerate(("convolution", "normalization"))
    ),
    *(
        (_BLOCK.format(stage) + source, rf"backbone.layer{stage + 1}.\1.{own}.")
        for stage in range(4)
        for source, own in (
            *((rf"layer\.{i}\.convolution\.", f"conv{i + 1}") for i in range(3)),
            *((rf"layer\.{i}\.normalization\.", f"bn{i + 1}") for i in range(3)),
            (r"shortcut\.(?:1\.)?convolution\.", f"downsample.{int(stage > 0)}"),
            (r"shortcut\.(?:1\.)?normalization\.", f"downsample.{int(stage > 0) + 1}"),
        )
    ),
]
_PARTS = [*NECK, *_FUSION, *HEAD]
AUTHORS_KEYS = [(r"backbone\.", "backbone."), *((source, own) for source, _, own in _PARTS)]
HUGGING_FACE_KEYS = [*HUGGING_FACE_BACKBONE, *((source, own) for _, source, own in _PARTS)]
NO_WEIGHTS = re.compile(r"decoder\.(?:anchors|valid_mask)|.*(?:num|n)_points_scale")  # buffers of constants
WHOSE = "an RT-DETR that detkit converts"


def convert_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of either publisher with detkit's keys. Raises UserError for a key that neither of them has."""
    weights = {key: tensor for key, tensor in state.items() if not NO_WEIGHTS.fullmatch(key)}
    if any(key.startswith("model.") for key in weights):
        return rename(weights, HUGGING_FACE_KEYS, WHOSE)
    trunk = {key.removeprefix("backbone."): tensor for key, tensor in weights.items() if key.startswith("backbone.")}
    try:
        backbone = convert_published(trunk)
    except (IndexError, ValueError) as error:
        raise UserError(f"the backbone is not that of {WHOSE}, a ResNet-vd") from error
    rest = {key: tensor for key, tensor in weights.items() if not key.startswith("backbone.")}
    return rename({**{f"backbone.{key}": tensor for key, tensor in backbone.items()}, **rest}, AUTHORS_KEYS, WHOSE)


BACKBONES: dict[tuple[str, tuple[int, ...]], Any] = {  # layer_type and depths in transformers
    ("basic", (2, 2, 2, 2)): "resnet18_vd",
    ("basic", (3, 4, 6, 3)): "resnet34_vd",
    ("bottleneck", (3, 4, 6, 3)): "resnet50_vd",
    ("bottleneck", (3, 4, 23, 3)): "resnet101_vd",
}


def hf_config(config: dict[str, Any]) -> RTDETRConfig:
    """From the config.json of Hugging Face's, `rt_detr` or `rt_detr_v2`. Raises UserError for what detkit lacks."""
    require(
        config,
        feat_strides=[8, 16, 32],
        num_feature_levels=3,
        encode_proj_layers=[2],
        encoder_activation_function="gelu",
        activation_function="silu",
        normalize_before=False,
        learn_initial_query=False,
        with_box_refine=True,
        decoder_offset_scale=0.5,
        layer_norm_eps=1e-5,
        batch_norm_eps=1e-5,
    )
    neck = HybridEncoderConfig(
        width=config["encoder_hidden_dim"],
        heads=config["encoder_attention_heads"],
        layers=config["encoder_layers"],
        feedforward=config["encoder_ffn_dim"],
        dropout=float(config["dropout"]),
        temperature=float(config["positional_encoding_temperature"]),
        expansion=config["hidden_expansion"],
    )
    return RTDETRConfig(backbone=_backbone_of(config), neck=neck, head=_head_of(config))


def _head_of(config: Mapping[str, Any]) -> RTDETRHeadConfig:
    act: Any = activation_of(config["decoder_activation_function"])
    transformer = RTDETRTransformerConfig(
        width=config["d_model"],
        heads=config["decoder_attention_heads"],
        decoder_layers=config["decoder_layers"],
        feedforward=config["decoder_ffn_dim"],
        dropout=float(config["dropout"]),
        act=act,
        points=config["decoder_n_points"],
        sampling="discrete" if config.get("decoder_method") == "discrete" else "bilinear",
    )
    denoising = None
    if config["num_denoising"]:
        denoising = DenoisingConfig(
            queries=config["num_denoising"],
            label_noise=config["label_noise_ratio"] / 2,  # the published code halves it
            box_noise=config["box_noise_scale"],
        )
    return RTDETRHeadConfig(transformer=transformer, num_queries=config["num_queries"], denoising=denoising)


def _backbone_of(config: Mapping[str, Any]) -> ResNetVDConfig:
    inner = config["backbone_config"]
    require(
        inner,
        model_type="rt_detr_resnet",
        embedding_size=64,
        hidden_act="relu",
        downsample_in_first_stage=False,
        downsample_in_bottleneck=False,
        num_channels=3,
    )
    key = (inner["layer_type"], tuple(inner["depths"]))
    if key not in BACKBONES:
        raise UserError(
            f"backbone_config: detkit has {', '.join(BACKBONES.values())}, found {key[0]} of depths {key[1]}"
        )
    frozen = config["freeze_backbone_batch_norms"]
    return ResNetVDConfig(name=BACKBONES[key], norm="frozen_bn" if frozen else "bn", frozen_stages=1 if frozen else 0)

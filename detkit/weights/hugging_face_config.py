"""What the JSON files beside Hugging Face's weights say, in detkit's terms; what detkit lacks is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detkit.config import UserError
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.input import InputConfig, ResizeConfig, ShortSideConfig, StretchConfig

RESNETS = {  # layer_type and depths in transformers
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "prelu": "prelu", "silu": "swish", "swish": "swish"}


def read_json(file: Path) -> dict[str, Any]:
    """Raises UserError, which names `file`, unless it holds a JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot read it: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def require(config: Mapping[str, Any], **only: Any) -> None:
    """Raises UserError if a field of `config` is not the one value that detkit has. A field that is absent is."""
    for name, value in only.items():
        if config.get(name, value) != value:
            raise UserError(f"{name}: detkit has {value!r} only, found {config[name]!r}")


def activation_of(name: Any) -> str:
    """detkit's name of an activation of transformers."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation_function: detkit has {', '.join(ACTIVATIONS)}, found {name!r}")
    return ACTIVATIONS[name]


def transformer_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `TransformerConfig` that DETR, Deformable DETR, Conditional and DAB-DETR have in config.json."""
    for part in ("attention_heads", "ffn_dim"):
        encoder, decoder = (config[f"{side}_{part}"] for side in ("encoder", "decoder"))
        if encoder != decoder:
            raise UserError(f"decoder_{part}: detkit has the encoder's only, {encoder}, found {decoder}")
    return {
        "width": config["d_model"] if "d_model" in config else config["hidden_size"],
        "heads": config["encoder_attention_heads"],
        "encoder_layers": config["encoder_layers"],
        "decoder_layers": config["decoder_layers"],
        "feedforward": config["encoder_ffn_dim"],
        "dropout": float(config.get("dropout", 0.1)),
        "act": activation_of(config.get("activation_function", "relu")),
    }


def resnet_of(config: Mapping[str, Any], strides: tuple[int, ...]) -> ResNetConfig:
    """The backbone of `config`, a ResNet of timm or of transformers. With `dilation` stride 32 becomes 16."""
    inner = config.get("backbone_config") or {}
    model_type = inner.get("model_type", "timm_backbone")
    if model_type == "timm_backbone":
        name, dilation = inner.get("backbone") or config.get("backbone"), bool(config.get("dilation", False))
        known = list(RESNETS.values())
    elif model_type == "resnet":
        require(inner, embedding_size=64, hidden_act="relu", downsample_in_first_stage=False)
        key = (inner["layer_type"], tuple(inner["depths"]))
        name, dilation, known = RESNETS.get(key, key), False, list(RESNETS.values())
    else:  # another network, whatever its name
        name, dilation, known = model_type, False, []
    if name not in known:
        raise UserError(f"backbone: detkit has {', '.join(RESNETS.values())} for it, found {name!r}")
    return ResNetConfig(
        name=name,
        strides=tuple(16 if dilation and stride == 32 else stride for stride in strides),
        dilation=dilation,
        stride_in_1x1=bool(inner.get("downsample_in_bottleneck", False)),
    )


def read_input(file: Path, published: InputConfig) -> InputConfig:
    """The input that preprocessor_config.json describes; `published` if there is no such file."""
    if not file.is_file():
        return published
    fields = read_json(file)
    normalise = fields.get("do_normalize", True) and "image_mean" in fields and "image_std" in fields
    mean = fields["image_mean"] if normalise else (0.0, 0.0, 0.0)
    std = fields["image_std"] if normalise else (1.0, 1.0, 1.0)
    try:
        factor = float(fields.get("rescale_factor", 1 / 255)) if fields.get("do_rescale", True) else 1.0
        for name, values in (("rescale_factor", [factor]), ("image_std", std)):
            if not all(value > 0 for value in values):
                raise UserError(f"{name}: expected more than 0, found {fields[name]}")
        resize = published.resize if "size" not in fields else _resize_of(fields["size"], fields.get("max_size"))
        pixels = {"mean": tuple(value / factor for value in mean), "std": tuple(value / factor for value in std)}
        return type(published).model_validate({"resize": resize, **pixels})
    except (UserError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{file}: {str(error).splitlines()[0]}") from error


def _resize_of(size: Any, max_size: Any) -> ResizeConfig:
    """size: px beside `max_size`, or has `shortest_edge` and `longest_edge`, or has `height` and `width`."""
    if isinstance(size, int):
        return ShortSideConfig(size=size, max_size=max_size or 1333)
    if "shortest_edge" in size:
        return ShortSideConfig(size=size["shortest_edge"], max_size=size.get("longest_edge") or 1333)
    if "height" in size and size["height"] == size.get("width"):
        return StretchConfig(size=size["height"])
    raise UserError(f"size: detkit has a shortest edge or equal height and width, found {size}")

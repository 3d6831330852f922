"""Backbones: images or clips to feature levels.

`build_backbone` builds the module of a `BackboneConfig`. `load_classifier` initialises the fully connected layers of a
detector with those of the classifier that the backbone was trained in.
"""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from detkit.nn.backbones.alexnet import AlexNetConfig, CaffeNetConfig, build_alexnet, build_caffenet
from detkit.nn.backbones.c3d import C3DConfig, build_c3d
from detkit.nn.backbones.convnext import ConvNeXtConfig, build_convnext
from detkit.nn.backbones.csp_darknet import CSPDarknetConfig, build_csp_darknet
from detkit.nn.backbones.csp_darknet53 import CSPDarknet53Config, build_csp_darknet53
from detkit.nn.backbones.darknet import DarknetConfig, build_darknet
from detkit.nn.backbones.efficient_rep import EfficientRepConfig, build_efficient_rep
from detkit.nn.backbones.elan import ELANConfig, build_elan
from detkit.nn.backbones.inception import InceptionConfig, build_inception
from detkit.nn.backbones.lenet import LeNetConfig, build_lenet
from detkit.nn.backbones.mobilenet import (
    MobileNetV1Config,
    MobileNetV3Config,
    SSDLiteMobileNetConfig,
    build_mobilenet_v1,
    build_mobilenet_v3,
    build_ssdlite_mobilenet,
)
from detkit.nn.backbones.resnet import ResNetConfig, build_resnet
from detkit.nn.backbones.resnet_vd import ResNetVDConfig, build_resnet_vd
from detkit.nn.backbones.staged import StagedBackbone, download_classifier
from detkit.nn.backbones.swin import SwinConfig, build_swin
from detkit.nn.backbones.timm import TimmConfig, build_timm
from detkit.nn.backbones.vgg import SSDVGGConfig, VGGConfig, build_ssd_vgg, build_vgg
from detkit.nn.backbones.video_resnet import S3DConfig, VideoResNetConfig, build_s3d, build_video_resnet
from detkit.nn.backbones.vit import DINOv2Config, ViTConfig, build_vit

BackboneConfig = Annotated[
    ResNetConfig
    | ResNetVDConfig
    | VGGConfig
    | SSDVGGConfig
    | MobileNetV1Config
    | MobileNetV3Config
    | SSDLiteMobileNetConfig
    | DarknetConfig
    | CSPDarknet53Config
    | CSPDarknetConfig
    | EfficientRepConfig
    | ELANConfig
    | SwinConfig
    | ConvNeXtConfig
    | ViTConfig
    | DINOv2Config
    | TimmConfig
    | LeNetConfig
    | AlexNetConfig
    | CaffeNetConfig
    | InceptionConfig
    | C3DConfig
    | VideoResNetConfig
    | S3DConfig,
    Field(discriminator="name"),
]


def build_backbone(config: BackboneConfig) -> StagedBackbone:
    match config:
        case ResNetConfig():
            return build_resnet(config)
        case ResNetVDConfig():
            return build_resnet_vd(config)
        case VGGConfig():
            return build_vgg(config)
        case SSDVGGConfig():
            return build_ssd_vgg(config)
        case MobileNetV1Config():
            return build_mobilenet_v1(config)
        case MobileNetV3Config():
            return build_mobilenet_v3(config)
        case SSDLiteMobileNetConfig():
            return build_ssdlite_mobilenet(config)
        case DarknetConfig():
            return build_darknet(config)
        case CSPDarknetConfig():
            return build_csp_darknet(config)
        case CSPDarknet53Config():
            return build_csp_darknet53(config)
        case EfficientRepConfig():
            return build_efficient_rep(config)
        case ELANConfig():
            return build_elan(config)
        case SwinConfig():
            return build_swin(config)
        case ConvNeXtConfig():
            return build_convnext(config)
        case ViTConfig() | DINOv2Config():
            return build_vit(config)
        case TimmConfig():
            return build_timm(config)
        case LeNetConfig():
            return build_lenet(config)
        case AlexNetConfig():
            return build_alexnet(config)
        case CaffeNetConfig():
            return build_caffenet(config)
        case InceptionConfig():
            return build_inception(config)
        case C3DConfig():
            return build_c3d(config)
        case VideoResNetConfig():
            return build_video_resnet(config)
        case S3DConfig():
            return build_s3d(config)


@torch.no_grad()
def load_classifier(config: BackboneConfig, layers: Iterable[nn.Module]) -> str | None:
    """Initialises a detector's hidden layers with fc6 and fc7, or fc6 alone, of the backbone's public classifier.

    layers  nn.Linear each; if there are more than two, or if one has another shape, none of them changes

    Returns a sentence for the user that says what `layers` start from. None: there are no layers, no weights were asked
    for, or the backbone's classifier has no such layers (only VGG's and AlexNet's have).
    """
    layers = list(layers)
    if not isinstance(config, VGGConfig | AlexNetConfig) or config.weights is None or not layers:
        return None
    source = f"{config.name} {config.weights}"
    if config.weights == "IMAGENET1K_FEATURES":
        return f"roi.hidden starts at random: {source} has no fc6 and fc7"
    state = download_classifier(config.name, config.weights)
    keys = [key for key in state if key.startswith("classifier.") and key.endswith(".weight")][:2]
    names = " and ".join(["fc6", "fc7"][: len(layers)])
    shapes, public_shapes = [_shape(layer) for layer in layers], [tuple(state[key].shape) for key in keys]
    if shapes != public_shapes[: len(layers)]:
        return (
            f"roi.hidden starts at random: its layers are {_describe(shapes)}, "
            f"fc6 and fc7 of {source} are {_describe(public_shapes)}"
        )
    for layer, key in zip(layers, keys, strict=False):
        layer.load_state_dict({"weight": state[key], "bias": state[key.removesuffix("weight") + "bias"]})
    return f"roi.hidden: {names} of {source}"


def _shape(layer: nn.Module) -> tuple[int, ...] | None:
    """(out, in) of a linear layer; None for another layer, such as one that `compress` cut to a lower rank."""
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else None


def _describe(shapes: Iterable[tuple[int, ...] | None]) -> str:
    return ", ".join(f"{shape[1]} to {shape[0]}" if shape else "not linear" for shape in shapes)

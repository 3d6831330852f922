"""Image -> feature levels. `build_backbone` turns a `BackboneConfig` into a module, `load_classifier` gives what public
weights have after it to a detector's fully connected layers.
"""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torchvision.models import get_model_weights

from detkit.nn.backbones.alexnet import AlexNetConfig, CaffeNetConfig, build_alexnet, build_caffenet
from detkit.nn.backbones.darknet import DarknetConfig, build_darknet
from detkit.nn.backbones.inception import GoogLeNetConfig, InceptionV3Config, build_googlenet, build_inception_v3
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
from detkit.nn.backbones.staged import StagedBackbone, download
from detkit.nn.backbones.vgg import SSDVGGConfig, VGGConfig, build_ssd_vgg, build_vgg

BackboneConfig = Annotated[
    ResNetConfig
    | VGGConfig
    | SSDVGGConfig
    | MobileNetV1Config
    | MobileNetV3Config
    | SSDLiteMobileNetConfig
    | DarknetConfig
    | LeNetConfig
    | AlexNetConfig
    | CaffeNetConfig
    | GoogLeNetConfig
    | InceptionV3Config,
    Field(discriminator="name"),
]


def build_backbone(config: BackboneConfig) -> StagedBackbone:
    match config:
        case ResNetConfig():
            return build_resnet(config)
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
        case LeNetConfig():
            return build_lenet(config)
        case AlexNetConfig():
            return build_alexnet(config)
        case CaffeNetConfig():
            return build_caffenet(config)
        case GoogLeNetConfig():
            return build_googlenet(config)
        case InceptionV3Config():
            return build_inception_v3(config)


@torch.no_grad()
def load_classifier(config: BackboneConfig, layers: Iterable[nn.Module]) -> None:
    """Starts a detector's fc6 and fc7, or fc6 alone, from those of the backbone's public classifier.

    All of `layers` or none: nothing happens if one has another shape, or if the backbone has no public weights or they
    no such layers (VGG's and AlexNet's do, but for VGG16's IMAGENET1K_FEATURES).
    """
    if not isinstance(config, VGGConfig | AlexNetConfig) or config.weights in (None, "IMAGENET1K_FEATURES"):
        return
    public = get_model_weights(config.name)[config.weights]
    state = download(public.url, str(public))
    weights = [key for key in state if key.startswith("classifier.") and key.endswith(".weight")][:2]
    layers = list(layers)
    pairs = [
        (layer, state[weight], state[weight.removesuffix("weight") + "bias"])
        for layer, weight in zip(layers, weights, strict=False)
        if isinstance(layer, nn.Linear) and layer.weight.shape == state[weight].shape
    ]
    if len(pairs) == len(layers):
        for layer, weight, bias in pairs:
            layer.load_state_dict({"weight": weight, "bias": bias})

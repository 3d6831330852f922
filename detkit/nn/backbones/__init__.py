"""Image -> feature levels. `build_backbone` turns a `BackboneConfig` into a module."""

from typing import Annotated

from pydantic import Field

from detkit.nn.backbones.darknet import DarknetConfig, build_darknet
from detkit.nn.backbones.mobilenet import (
    MobileNetV1Config,
    MobileNetV3Config,
    SSDLiteMobileNetConfig,
    build_mobilenet_v1,
    build_mobilenet_v3,
    build_ssdlite_mobilenet,
)
from detkit.nn.backbones.resnet import ResNetConfig, build_resnet
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.vgg import SSDVGGConfig, VGGConfig, build_ssd_vgg, build_vgg

BackboneConfig = Annotated[
    ResNetConfig
    | VGGConfig
    | SSDVGGConfig
    | MobileNetV1Config
    | MobileNetV3Config
    | SSDLiteMobileNetConfig
    | DarknetConfig,
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

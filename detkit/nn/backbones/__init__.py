"""Image -> feature levels. `build_backbone` turns a `BackboneConfig` into a module."""

from typing import Annotated

from pydantic import Field

from detkit.nn.backbones.darknet import DarknetConfig, build_darknet
from detkit.nn.backbones.mobilenet import MobileNetV3Config, build_mobilenet_v3
from detkit.nn.backbones.resnet import ResNetConfig, build_resnet
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.vgg import VGGConfig, build_vgg

BackboneConfig = Annotated[
    ResNetConfig | VGGConfig | MobileNetV3Config | DarknetConfig, Field(discriminator="name")
]


def build_backbone(config: BackboneConfig) -> StagedBackbone:
    match config:
        case ResNetConfig():
            return build_resnet(config)
        case VGGConfig():
            return build_vgg(config)
        case MobileNetV3Config():
            return build_mobilenet_v3(config)
        case DarknetConfig():
            return build_darknet(config)

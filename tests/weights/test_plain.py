"""State dicts of other programs: whose names they have is found by what fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from detkit.nn.backbones import build_backbone
from detkit.nn.backbones.alexnet import AlexNetConfig
from detkit.nn.backbones.inception import InceptionConfig
from detkit.nn.backbones.mobilenet import MobileNetV3Config
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.vgg import VGGConfig
from detkit.weights.plain import convert_plain


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("resnet50", ResNetConfig(norm="bn")),
        ("vgg16", VGGConfig()),
        ("alexnet", AlexNetConfig()),
        ("mobilenet_v3_small", MobileNetV3Config(name="mobilenet_v3_small")),
        ("inception_v3", InceptionConfig(name="inception_v3")),
    ],
)
def test_classifiers_of_torchvision_are_backbones(name: str, config: Any) -> None:
    """Every tensor of the backbone is found, whether the classifier has its convolutions in `features` or not."""
    with torch.device("meta"):
        options = {"init_weights": False} if name.startswith("inception") else {}
        state = torchvision.models.get_model(name, weights=None, **options).state_dict(prefix="module.")
        own = {f"backbone.{key}": tensor for key, tensor in build_backbone(config).state_dict().items()}

    def fitting(state: Mapping[str, Tensor]) -> int:
        return sum(key in own and own[key].shape == tensor.shape for key, tensor in state.items())

    whose, converted = convert_plain(state, fitting)
    assert whose == "a backbone alone"
    assert fitting(converted) == len(own)

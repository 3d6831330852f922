"""Levels of backbones are outputs of the layers of torchvision's classifiers that the papers name."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.mobilenet import MobileNetV1Config, MobileNetV3Config, SSDLiteMobileNetConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.vgg import SSDVGGConfig, VGGConfig

# torchvision's node of every level, finest first: C2-C5; before each of five pools; strided blocks and the last layer
NODES = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "vgg16": [f"features.{number}" for number in (3, 8, 15, 22, 29)],
    "mobilenet_v3_large": [f"features.{number}" for number in (0, 2, 4, 7, 13, 16)],
    "mobilenet_v3_small": [f"features.{number}" for number in (0, 1, 2, 4, 9, 12)],
}
STRIDES = {
    "resnet18": (4, 8, 16, 32),
    "resnet50": (4, 8, 16, 32),
    "vgg16": (1, 2, 4, 8, 16),
    "mobilenet_v3_large": (2, 4, 8, 16, 32, 32),
    "mobilenet_v3_small": (2, 4, 8, 16, 32, 32),
}
# what freezing this many stages freezes in torchvision's network, by the names of its parameters
FROZEN: list[tuple[BackboneConfig, str]] = [
    (ResNetConfig(name="resnet18", norm="bn", frozen_stages=0), "nothing"),
    (ResNetConfig(name="resnet18", norm="bn", frozen_stages=1), r"conv1|bn1"),
    (ResNetConfig(name="resnet18", norm="bn", frozen_stages=2), r"conv1|bn1|layer1\."),
    (ResNetConfig(name="resnet18", norm="bn", frozen_stages=5), r"conv1|bn1|layer\d\."),
    (VGGConfig(name="vgg11", frozen_stages=2), r"(0|3)\."),
    (VGGConfig(name="vgg16", frozen_stages=2), r"(0|2|5|7)\."),
    (MobileNetV3Config(norm="bn", frozen_stages=3), r"[0-6]\."),
    (MobileNetV3Config(norm="bn", frozen_stages=0), "nothing"),
    (MobileNetV3Config(norm="bn", frozen_stages=6), r"\d+\."),
]


def make_config(name: str, **fields: Any) -> Any:
    return TypeAdapter(BackboneConfig).validate_python({"name": name, **fields})


def randomise(network: nn.Module) -> None:
    """Sets random statistics and affine parameters, so that a missing batch norm changes the outputs."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in network.state_dict().items():
        if "running" in key or ".bn" in key or key.startswith("bn"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


@pytest.fixture(scope="module", params=NODES)
def pair(request: pytest.FixtureRequest) -> tuple[str, StagedBackbone, nn.Module]:
    """(name, backbone with every level, torchvision's network), both with the same weights."""
    name = request.param
    norm = {} if name == "vgg16" else {"norm": "bn"}
    if name.startswith("mobilenet"):
        norm["norm_eps"] = 1e-3  # of the classifier
    backbone = build_backbone(make_config(name, strides=STRIDES[name], frozen_stages=0, **norm))
    reference = models.get_model(name, weights=None)
    randomise(reference)
    state = {key.removeprefix("features."): value for key, value in reference.state_dict().items()}
    backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})
    return name, backbone.eval(), reference.eval()


@torch.no_grad()
def test_every_level_is_torchvisions(pair: tuple[str, StagedBackbone, nn.Module]) -> None:
    name, backbone, reference = pair
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    levels = backbone(images)
    expected = create_feature_extractor(reference, NODES[name])(images)
    assert len(levels) == len(NODES[name])
    for level, node in zip(levels, NODES[name], strict=True):
        torch.testing.assert_close(level, expected[node])


@torch.no_grad()
def test_channels_and_strides_are_those_of_the_levels(pair: tuple[str, StagedBackbone, nn.Module]) -> None:
    name, backbone, _ = pair
    levels = backbone(torch.zeros(1, 3, 64, 96))
    assert backbone.out_strides == STRIDES[name]
    assert [level.shape[1] for level in levels] == list(backbone.out_channels)
    assert [(64 / level.shape[2], 96 / level.shape[3]) for level in levels] == [(s, s) for s in STRIDES[name]]


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "channels", "strides"),
    [
        (ResNetConfig(name="resnet18"), (64, 128, 256, 512), (4, 8, 16, 32)),
        (ResNetConfig(name="resnet50", strides=(8, 32)), (512, 2048), (8, 32)),
        (VGGConfig(), (512,), (16,)),
        (VGGConfig(name="vgg11", strides=(1, 8)), (64, 512), (1, 8)),
        (MobileNetV3Config(), (160, 960), (32, 32)),
        (MobileNetV3Config(strides=(16, 32)), (80, 960), (16, 32)),
        (MobileNetV3Config(name="mobilenet_v3_small", strides=(2, 16)), (16, 40), (2, 16)),
        (SSDVGGConfig(), (512, 1024), (8, 16)),
        (SSDVGGConfig(strides=(16, 16)), (512, 1024), (16, 16)),
        (SSDLiteMobileNetConfig(), (672, 480), (16, 32)),
        (SSDLiteMobileNetConfig(strides=(16, 16, 32)), (80, 672, 480), (16, 16, 32)),
        (MobileNetV1Config(), (512, 1024), (16, 32)),
    ],
)
def test_levels_of_some_strides(config: BackboneConfig, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    with torch.device("meta"):
        backbone = build_backbone(config)
        levels = backbone(torch.zeros(1, 3, 64, 64))
    assert (backbone.out_channels, backbone.out_strides) == (channels, strides)
    assert [tuple(level.shape[1:]) for level in levels] == [
        (c, 64 // s, 64 // s) for c, s in zip(channels, strides, strict=True)
    ]


def test_blocks_after_the_last_level_are_left_out() -> None:
    with torch.device("meta"):
        vgg, backbone = build_backbone(VGGConfig()), build_backbone(ResNetConfig(name="resnet18", strides=(4, 8)))
    assert sum(p.numel() for p in vgg.parameters()) == 14_714_688  # the convolutions of VGG16, arXiv 1409.1556
    assert {key.partition(".")[0] for key in backbone.state_dict()} == {"conv1", "bn1", "layer1", "layer2"}
    assert backbone.block_names == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]


@pytest.mark.parametrize(("config", "frozen"), FROZEN, ids=lambda case: str(case)[:60])
def test_frozen_stages_get_neither_gradients_nor_statistics(config: BackboneConfig, frozen: str) -> None:
    backbone = build_backbone(config).train()
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    levels = backbone(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    loss = sum((level.square().mean() for level in levels), torch.zeros(()))
    if loss.requires_grad:
        loss.backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == bool(re.match(frozen, name)), name
    for name, buffer in backbone.named_buffers():
        if "running" in name:
            assert torch.equal(buffer, before[name]) == bool(re.match(frozen, name)), name


def test_frozen_batch_norm_has_nothing_to_train() -> None:
    backbone = build_backbone(ResNetConfig(name="resnet18", frozen_stages=0)).train()
    assert all(parameter.ndim == 4 for parameter in backbone.parameters())
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in backbone.named_buffers())


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download folder of torch hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def publish(folder: Path, name: str, weights: str) -> dict[str, Tensor]:
    """Saves a random network where torchvision's loader looks for downloaded weights; returns its state."""
    state = models.get_model(name, weights=None).state_dict()
    torch.save(state, folder / models.get_model_weights(name)[weights].url.rsplit("/", 1)[-1])
    return state


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
def test_public_weights_are_loaded(name: str, norm: str, torch_home: Path) -> None:
    state = publish(torch_home, name, "IMAGENET1K_V1")
    backbone = build_backbone(make_config(name, weights="IMAGENET1K_V1", norm=norm))
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, state[key if name == "resnet18" else f"features.{key}"]), key


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "mobilenet_v3_large"])
def test_unknown_weights_are_refused_before_anything_is_loaded(name: str) -> None:
    with pytest.raises(ValueError, match=f"'IMAGENET1K_V9' is not a torchvision weights entry of {name}; known: "):
        make_config(name, weights="IMAGENET1K_V9")
    with pytest.raises(ValueError, match="known: IMAGENET1K_V1"):
        make_config(name, weights="imagenet")

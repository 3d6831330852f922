"""Backbones are torchvision's classifiers, tapped where the papers tap them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.mobilenet import MobileNetV3Config
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.vgg import VGGConfig

# torchvision's node of every level, finest first: C2-C5; before each of five pools; strided blocks and the last layer
NODES = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "vgg16": [f"features.{number}" for number in (3, 8, 15, 22, 29)],
    "mobilenet_v3_large": [f"features.{number}" for number in (0, 2, 4, 7, 13, 16)],
    "mobilenet_v3_small": [f"features.{number}" for number in (0, 1, 2, 4, 9, 12)],
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


def all_levels(name: str) -> tuple[int, ...]:
    first = {"resnet18": 2, "resnet50": 2, "vgg16": 1}.get(name, 0)
    return tuple(range(first, first + len(NODES[name])))


def randomise(network: nn.Module) -> None:
    """Statistics and affine maps that no two channels share, so that a forgotten batch norm shows."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in network.state_dict().items():
        if "running" in key or ".bn" in key or key.startswith("bn"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


@pytest.fixture(scope="module", params=NODES)
def pair(request: pytest.FixtureRequest) -> tuple[str, StagedBackbone, nn.Module]:
    """(name, ours with every level, torchvision's) with the same weights."""
    name = request.param
    norm = {} if name == "vgg16" else {"norm": "bn"}
    if name.startswith("mobilenet"):
        norm["norm_eps"] = 1e-3  # of the classifier
    ours = build_backbone(make_config(name, levels=all_levels(name), frozen_stages=0, **norm))
    theirs = models.get_model(name, weights=None)
    randomise(theirs)
    state = {key.removeprefix("features."): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict({key: state[key] for key in ours.state_dict()})
    return name, ours.eval(), theirs.eval()


@torch.no_grad()
def test_every_level_is_torchvisions(pair: tuple[str, StagedBackbone, nn.Module]) -> None:
    name, ours, theirs = pair
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    levels = ours(images)
    expected = create_feature_extractor(theirs, NODES[name])(images)
    assert len(levels) == len(NODES[name])
    for level, node in zip(levels, NODES[name], strict=True):
        torch.testing.assert_close(level, expected[node])


@torch.no_grad()
def test_widths_and_strides_are_what_comes_out(pair: tuple[str, StagedBackbone, nn.Module]) -> None:
    _, ours, _ = pair
    levels = ours(torch.zeros(1, 3, 64, 96))
    assert [level.shape[1] for level in levels] == list(ours.out_channels)
    assert [(64 / level.shape[2], 96 / level.shape[3]) for level in levels] == [(s, s) for s in ours.out_strides]


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "channels", "strides"),
    [
        (ResNetConfig(name="resnet18"), (64, 128, 256, 512), (4, 8, 16, 32)),
        (ResNetConfig(name="resnet50", levels=(3, 5)), (512, 2048), (8, 32)),
        (VGGConfig(), (512,), (16,)),
        (VGGConfig(name="vgg11", levels=(1, 4)), (64, 512), (1, 8)),
        (MobileNetV3Config(), (160, 960), (32, 32)),
        (MobileNetV3Config(name="mobilenet_v3_small", levels=(0, 3)), (16, 40), (2, 16)),
    ],
)
def test_chosen_levels(config: BackboneConfig, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    backbone = build_backbone(config)
    assert (backbone.out_channels, backbone.out_strides) == (channels, strides)
    levels = backbone(torch.zeros(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (c, 64 // s, 64 // s) for c, s in zip(channels, strides, strict=True)
    ]


@pytest.mark.parametrize(("name", "levels"), [("resnet18", (4, 3)), ("vgg16", (5, 5)), ("mobilenet_v3_large", ())])
def test_levels_are_given_finest_first_and_once(name: str, levels: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match=r"expected at least one level, finest first and each once, got \["):
        make_config(name, levels=levels)


def test_blocks_after_the_last_level_are_left_out() -> None:
    parameters = sum(p.numel() for p in build_backbone(VGGConfig()).parameters())
    assert parameters == 14_714_688  # the convolutions of VGG16, arXiv 1409.1556
    names = [name for name, _ in build_backbone(ResNetConfig(name="resnet18", levels=(2, 3))).named_children()]
    assert names == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]


@pytest.mark.parametrize(("config", "frozen"), FROZEN, ids=lambda case: str(case)[:60])
def test_frozen_stages_stand_still_and_the_others_learn(config: BackboneConfig, frozen: str) -> None:
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
    """A random network where torchvision's loader keeps the public weights once they are downloaded."""
    state = models.get_model(name, weights=None).state_dict()
    torch.save(state, folder / models.get_model_weights(name)[weights].url.rsplit("/", 1)[-1])
    return state


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
def test_public_weights_come_through_torchvisions_loader(name: str, norm: str, torch_home: Path) -> None:
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

"""Backbones of clips: C3D by hand, torchvision's networks beside torchvision, and levels over time."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.video_resnet import FrozenBatchNorm3d

# torchvision's node of every level, finest first
RESNET = ["layer1", "layer2", "layer3", "layer4"]
NODES = {
    "r3d_18": RESNET,
    "mc3_18": RESNET,
    "r2plus1d_18": RESNET,
    "s3d": [f"features.{number}" for number in (0, 3, 6, 12, 15)],
}
# the published numbers of parameters without those of the last layer
COUNTS = {
    "c3d": 27_655_936,
    "r3d_18": 33_371_472 - 401 * 512 + 112,  # 512 x 400 weights and 400 biases = 401 x 512 - 112
    "mc3_18": 11_695_440 - 401 * 512 + 112,
    "r2plus1d_18": 31_505_325 - 401 * 512 + 112,
    "s3d": 8_320_048 - 1025 * 400,
}
# the levels of 16 frames of 112 x 112 px by hand: (C, T, H = W)
SHAPES = {
    "c3d": [(64, 16, 112), (128, 16, 56), (256, 8, 28), (512, 4, 14), (512, 2, 7), (512, 1, 4)],
    "r3d_18": [(64, 16, 56), (128, 8, 28), (256, 4, 14), (512, 2, 7)],
    "mc3_18": [(64, 16, 56), (128, 16, 28), (256, 16, 14), (512, 16, 7)],
    "r2plus1d_18": [(64, 16, 56), (128, 8, 28), (256, 4, 14), (512, 2, 7)],
    "s3d": [(64, 8, 56), (192, 8, 28), (480, 8, 14), (832, 4, 7), (1024, 2, 3)],
}


def build(name: str, **fields: Any) -> StagedBackbone:
    """With all levels unless `strides` are given, and batch norms that learn unless `norm` is given."""
    adapter: Any = TypeAdapter(BackboneConfig)
    config = adapter.validate_python({"name": name})
    strides = tuple(stride for stride in config.stage_strides if stride is not None)
    norm = {} if name == "c3d" else {"norm": "bn"}
    return build_backbone(adapter.validate_python({"name": name, "strides": strides, **norm, **fields}))


def clip(frames: int, side: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_levels_of_a_published_clip(name: str) -> None:
    with torch.device("meta"):
        backbone = build(name, time_pooling="none")
        levels = backbone(torch.zeros(1, 3, 16, 112, 112))
    assert sum(p.numel() for p in backbone.parameters()) == COUNTS[name]
    assert [tuple(level.shape) for level in levels] == [(1, c, t, side, side) for c, t, side in SHAPES[name]]
    assert backbone.out_channels == tuple(channels for channels, _, _ in SHAPES[name])


def test_c3d_has_8192_numbers_before_fc6_and_halved_channels_at_half_width() -> None:
    assert SHAPES["c3d"][-1] == (512, 1, 4)  # of Caffe's pool 5, which rounds 7 / 2 up; 512 x 1 x 4 x 4 = 8192
    with torch.device("meta"):
        assert build("c3d", width=0.5).out_channels == (32, 64, 128, 256, 256, 256)
        norm = build("c3d", norm="bn")
    # a bias becomes a scale and a shift: one number more for each of 2752 channels
    assert sum(p.numel() for p in norm.parameters()) == COUNTS["c3d"] + 64 + 128 + 2 * 256 + 4 * 512


@torch.no_grad()
def test_c3d_is_convolutions_relu_and_pools() -> None:
    backbone = build("c3d", width=1 / 16, time_pooling="none").eval()
    state = backbone.state_dict()
    x = clip(16, 36)
    expected = []
    for number, layers in enumerate(("1", "2", "3a 3b", "4a 4b", "5a 5b"), start=1):
        for layer in layers.split():
            x = F.conv3d(x, state[f"conv{layer}.weight"], state[f"conv{layer}.bias"], padding=1).relu()
        expected.append(x)
        x = F.max_pool3d(x, (1, 2, 2) if number == 1 else 2, padding=(0, 1, 1) if number == 5 else 0)
    for level, features in zip(backbone(clip(16, 36)), [*expected, x], strict=True):
        torch.testing.assert_close(level, features)


def randomise(network: nn.Module) -> None:
    """Random statistics and affine parameters of the batch norms, so that a missing one changes the outputs."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                assert value is not None
                value.data.copy_(torch.rand(value.shape, generator=generator) + 0.5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "norm"), [("r3d_18", "bn"), ("mc3_18", "frozen_bn"), ("r2plus1d_18", "bn"), ("s3d", "frozen_bn")]
)
def test_levels_are_torchvisions_features(name: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = get_model(name, weights=None).eval()
    randomise(reference)
    monkeypatch.setattr("detkit.nn.backbones.staged.download_classifier", lambda model, weights: reference.state_dict())
    backbone = build(name, norm=norm, weights="KINETICS400_V1", time_pooling="none").train(norm == "frozen_bn")
    features = create_feature_extractor(reference, NODES[name])(clip(8, 32))
    for level, node in zip(backbone(clip(8, 32)), NODES[name], strict=True):
        torch.testing.assert_close(level, features[node], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_levels_are_pooled_over_all_their_frames() -> None:
    whole, mean, largest = (build("c3d", width=1 / 16, time_pooling=pooling) for pooling in ("none", "mean", "max"))
    mean.load_state_dict(whole.state_dict())
    largest.load_state_dict(whole.state_dict())
    images = clip(16, 32, batch=2)
    for level, average, maximum in zip(whole(images), mean(images), largest(images), strict=True):
        frames = [level[:, :, t] for t in range(level.shape[2])]
        torch.testing.assert_close(average, sum(frames) / len(frames))
        assert torch.equal(maximum, torch.stack(frames).max(dim=0).values)


@torch.no_grad()
def test_a_pooled_level_does_not_change_the_next() -> None:
    every, last = build("c3d", width=1 / 16), build("c3d", width=1 / 16, strides=(16,))
    last.load_state_dict(every.state_dict())  # pool 5 has no parameters
    assert torch.equal(last(clip(16, 32))[0], every(clip(16, 32))[4])


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("c3d", ["conv1", "conv2", "conv3[ab]", "conv4[ab]", "conv5[ab]", "nothing"]),
        ("r3d_18", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("s3d", [r"0\.", r"[23]\.", r"[56]\.", r"([89]|1[012])\.", r"1[45]\."]),
    ],
)
def test_exactly_the_first_n_stages_are_frozen(name: str, patterns: list[str]) -> None:
    for number in range(len(patterns) + 1):
        with torch.device("meta"):
            backbone = build(name, frozen_stages=number).train()
        frozen = "|".join(patterns[:number]) or "nothing"
        for key, parameter in backbone.named_parameters():
            assert parameter.requires_grad != bool(re.match(frozen, key)), (number, key)
        for key, module in backbone.named_modules():
            if list(module.parameters(recurse=False)):
                assert module.training != bool(re.match(frozen, f"{key}.")), (number, key)


def test_frozen_norms_learn_nothing_and_take_a_state_dict_of_norms_that_learn() -> None:
    torch.manual_seed(0)
    frozen, learning = build("mc3_18", norm="frozen_bn", strides=(2,)), build("mc3_18", strides=(2,))
    randomise(learning)
    frozen.load_state_dict(learning.state_dict())
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    frozen.train()(clip(2, 8))[0].sum().backward()
    assert not [key for key, _ in frozen.named_parameters() if key.endswith("bias")]  # convolutions have none
    assert all(parameter.grad is not None for parameter in frozen.parameters())
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    torch.testing.assert_close(frozen(clip(2, 8)), learning.eval()(clip(2, 8)))
    assert sum(isinstance(module, FrozenBatchNorm3d) for module in frozen.modules()) == 5


def test_random_residual_blocks_start_as_their_shortcuts() -> None:
    backbone: Any = build("mc3_18", strides=(2,)).train()
    x = backbone.stem(clip(2, 8))
    torch.testing.assert_close(backbone.layer1(x), x)


def test_what_does_not_exist_is_refused() -> None:
    for fields, message in (
        ({"name": "r3d_18", "strides": (32,)}, "strides: r3d_18 has 2, 4, 8, 16, found [32]"),
        ({"name": "c3d", "strides": (64,)}, "strides: c3d has 1, 2, 4, 8, 16, 32, found [64]"),
        ({"name": "s3d", "weights": "KINETICS"}, "is not a torchvision weights entry of s3d; known: KINETICS400_V1"),
        ({"name": "c3d", "frames": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=re.escape(message)):
            TypeAdapter(BackboneConfig).validate_python(fields)


def test_s3d_takes_the_momentum_of_its_running_statistics() -> None:
    with torch.device("meta"):
        for fields, momentum in (({}, 0.001), ({"norm_momentum": 0.1}, 0.1)):
            norms = [module for module in build("s3d", **fields).modules() if isinstance(module, nn.BatchNorm3d)]
            assert {norm.momentum for norm in norms} == {momentum}

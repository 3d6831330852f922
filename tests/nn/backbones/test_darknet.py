"""The trunks have the layers of darknet's cfg files."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.nn.backbones import build_backbone
from detkit.nn.backbones.darknet import DarknetConfig, Residual, conv_blocks

NAMES = ("darknet19", "darknet53", "yolov3_tiny", "yolov1", "yolov1_tiny")
# (outputs, kernel, stride) of every convolution, from the cfg files
CFG = {
    "darknet19": "32/3 64/3 128/3 64/1 128/3 256/3 128/1 256/3 512/3 256/1 512/3 256/1 512/3 "
    "1024/3 512/1 1024/3 512/1 1024/3",
    "darknet53": "32/3 64/3/2 32/1 64/3 128/3/2"
    + " 64/1 128/3" * 2
    + " 256/3/2"
    + " 128/1 256/3" * 8
    + " 512/3/2"
    + " 256/1 512/3" * 8
    + " 1024/3/2"
    + " 512/1 1024/3" * 4,
    "yolov3_tiny": "16/3 32/3 64/3 128/3 256/3 512/3 1024/3",
    "yolov1": "64/7/2 192/3 128/1 256/3 256/1 512/3" + " 256/1 512/3" * 4 + " 512/1 1024/3" + " 512/1 1024/3" * 2
    + " 1024/3 1024/3/2 1024/3 1024/3",
    "yolov1_tiny": "16/3 32/3 64/3 128/3 256/3 512/3 1024/3 256/3",
}  # fmt: skip
POOLS = {"darknet19": 5, "darknet53": 0, "yolov3_tiny": 6, "yolov1": 4, "yolov1_tiny": 6}
STRIDES = {
    "darknet19": (1, 2, 4, 8, 16, 32),
    "darknet53": (1, 2, 4, 8, 16, 32),
    "yolov3_tiny": (1, 2, 4, 8, 16, 32),
    "yolov1": (2, 4, 8, 16, 32, 64),  # the first convolution has stride 2
    "yolov1_tiny": (1, 2, 4, 8, 16, 32, 64),
}
CHANNELS = {
    "darknet19": (32, 64, 128, 256, 512, 1024),
    "darknet53": (32, 64, 128, 256, 512, 1024),
    "yolov3_tiny": (16, 32, 64, 128, 256, 1024),
    "yolov1": (64, 192, 512, 1024, 1024, 1024),
    "yolov1_tiny": (16, 32, 64, 128, 256, 512, 256),
}


def make_config(name: Any, **fields: Any) -> DarknetConfig:
    return DarknetConfig(name=name, **{"strides": STRIDES[name], **fields})


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_those_of_the_cfg(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(make_config(name))
    convs = [block.conv for block in conv_blocks(backbone)]
    layers = [f"{c.out_channels}/{c.kernel_size[0]}" + (f"/{c.stride[0]}" if c.stride[0] > 1 else "") for c in convs]
    assert layers == CFG[name].split()
    assert sum(isinstance(module, nn.MaxPool2d) for module in backbone.modules()) == POOLS[name]
    assert all(isinstance(block.norm, nn.BatchNorm2d) for block in conv_blocks(backbone))
    assert all(isinstance(block.act, nn.LeakyReLU) for block in conv_blocks(backbone))


def test_counts_of_the_papers() -> None:
    with torch.device("meta"):
        darknet53, yolov1 = build_backbone(make_config("darknet53")), build_backbone(make_config("yolov1", norm="none"))
    assert len(conv_blocks(darknet53)) == 52
    residuals = [sum(isinstance(layer, Residual) for layer in stage) for stage in list(darknet53.children())[:6]]
    assert residuals == [0, 1, 2, 8, 8, 4]
    assert len(conv_blocks(yolov1)) == 24
    assert sum(p.numel() for p in yolov1.parameters()) == 60_155_968


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_channels_and_strides_are_those_of_the_levels(name: str) -> None:
    backbone = build_backbone(make_config(name)).eval()
    assert backbone.out_channels == CHANNELS[name]
    assert backbone.out_strides == STRIDES[name]
    shapes = [tuple(level.shape) for level in backbone(torch.zeros(1, 3, 64, 128))]
    expected = zip(CHANNELS[name], STRIDES[name], strict=True)
    assert shapes == [(1, channels, 64 // stride, 128 // stride) for channels, stride in expected]


def run(name: str, strides: tuple[int, ...], images: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    result: list[Tensor] = build_backbone(make_config(name, strides=strides)).eval()(images)
    return result


@torch.no_grad()
def test_levels_of_some_strides() -> None:
    images = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    levels, some = run("yolov3_tiny", (1, 2, 4, 8, 16, 32), images), run("yolov3_tiny", (4, 16), images)
    assert torch.equal(some[0], levels[2])
    assert torch.equal(some[1], levels[4])
    with torch.device("meta"):
        shorter = build_backbone(make_config("darknet53", strides=(8,)))
    assert shorter.block_names == ["stage0", "stage1", "stage2", "stage3"]


@torch.no_grad()
def test_a_residual_adds_its_input() -> None:
    block = Residual(4, 2).eval()
    x = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    added = block.expand(block.reduce(x))
    assert added.abs().max() > 0.01
    assert torch.equal(block(x), x + added)
    assert (block.reduce.conv.out_channels, block.reduce.conv.kernel_size) == (2, (1, 1))


@torch.no_grad()
def test_the_last_pool_of_tiny_yolov3_pads_right_and_below() -> None:
    """Stride 1: each pixel becomes the maximum of itself and of its neighbours right, below and between."""
    stage = build_backbone(make_config("yolov3_tiny")).get_submodule("stage5")
    (pool,) = (layer for layer in stage.children() if isinstance(layer, nn.Sequential))
    x = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(0)) - 1  # most are below zero
    y = pool(x)
    assert y.shape == x.shape
    for i in range(4):
        for j in range(5):
            assert torch.equal(y[0, :, i, j], x[0, :, i : i + 2, j : j + 2].amax(dim=(1, 2)))


@pytest.mark.parametrize("frozen_stages", [0, 1, 3, 6])
def test_frozen_stages_get_neither_gradients_nor_statistics(frozen_stages: int) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(make_config("yolov3_tiny", frozen_stages=frozen_stages)).train()
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    loss = sum((level.square().mean() for level in backbone(torch.rand(2, 3, 64, 64))), torch.zeros(()))
    if frozen_stages < 6:
        loss.backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (int(name[5]) < frozen_stages), name
    for name, buffer in backbone.named_buffers():
        if "running" in name:
            assert torch.equal(buffer, before[name]) == (int(name[5]) < frozen_stages), name

"""The convolutional trunks of YOLOv1 to YOLOv3 as darknet builds them: 3x3 and 1x1 convolutions, batch norm, leaky
ReLU.

A stage is all layers of one stride: it ends before the next max pool or strided convolution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from detkit.nn.backbones.darknet_weights import load_darknet_weights
from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig
from detkit.nn.blocks import Activation, ConvBlock

Stages = list[list[nn.Module]]  # the layers of each stride, finest first
STRIDES = {
    "darknet19": (1, 2, 4, 8, 16, 32),
    "darknet53": (1, 2, 4, 8, 16, 32),
    "yolov3_tiny": (1, 2, 4, 8, 16, 32),
    "yolov1": (2, 4, 8, 16, 32, 64),
    "yolov1_tiny": (1, 2, 4, 8, 16, 32, 64),
}


class DarknetConfig(StagedConfig):
    """darknet19: YOLOv2. darknet53: YOLOv3. yolov3_tiny, yolov1 (24 convolutions), yolov1_tiny: the trunks of those."""

    name: Literal["darknet19", "darknet53", "yolov3_tiny", "yolov1", "yolov1_tiny"] = "darknet53"
    strides: tuple[int, ...] = (8, 16, 32)
    weights: str | None = None  # a darknet file that begins with this trunk, such as darknet53.conv.74; null: random
    norm: Literal["bn", "none"] = "bn"  # none: biases instead, as in the paper of YOLOv1

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES[self.name]


class Residual(nn.Module):
    """1x1 to fewer channels, 3x3 back, and the input added (Darknet-53)."""

    def __init__(self, channels: int, hidden: int, act: Activation = "leaky") -> None:
        super().__init__()
        self.reduce = ConvBlock(channels, hidden, 1, act=act)
        self.expand = ConvBlock(hidden, channels, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.expand(self.reduce(x))
        return y


def build_darknet(config: DarknetConfig) -> StagedBackbone:
    norm = config.norm == "bn"
    match config.name:
        case "darknet19":
            stages = _darknet19(norm)
        case "darknet53":
            stages = _darknet53()
        case "yolov3_tiny":
            stages = _yolov3_tiny(norm)
        case "yolov1":
            stages = _yolov1(norm)
        case "yolov1_tiny":
            stages = _yolov1_tiny(norm)
    backbone = StagedBackbone(
        [
            Stage({f"stage{stride.bit_length() - 1}": nn.Sequential(*layers)}, stride, _out_channels(layers))
            for stride, layers in zip(config.stage_strides, stages, strict=True)
        ],
        config.strides,
        config.frozen_stages,
    )
    if config.weights:
        load_darknet_weights(Path(config.weights), conv_blocks(backbone), allow_rest=True)
    return backbone


def conv_blocks(module: nn.Module) -> list[ConvBlock]:
    """The convolutions of a module in the order in which they run, which is also their order in a darknet file."""
    return [layer for layer in module.modules() if isinstance(layer, ConvBlock)]


def _out_channels(layers: list[nn.Module]) -> int:
    return [layer.out_channels for stage in layers for layer in stage.modules() if isinstance(layer, ConvBlock)][-1]


def _convolutions(in_channels: int, out_channels: list[int], norm: bool) -> list[nn.Module]:
    """One convolution for each of `out_channels`: 3x3 where the channels grow, 1x1 where they shrink."""
    layers: list[nn.Module] = []
    for channels in out_channels:
        layers.append(ConvBlock(in_channels, channels, 3 if channels > in_channels else 1, norm=norm))
        in_channels = channels
    return layers


def _pool() -> nn.Module:
    return nn.MaxPool2d(2, 2)


def _darknet19(norm: bool) -> Stages:
    """YOLO9000, arXiv 1612.08242, table 6, without the classifier."""
    return [
        _convolutions(3, [32], norm),
        [_pool(), *_convolutions(32, [64], norm)],
        [_pool(), *_convolutions(64, [128, 64, 128], norm)],
        [_pool(), *_convolutions(128, [256, 128, 256], norm)],
        [_pool(), *_convolutions(256, [512, 256, 512, 256, 512], norm)],
        [_pool(), *_convolutions(512, [1024, 512, 1024, 512, 1024], norm)],
    ]


def _darknet53() -> Stages:
    """YOLOv3, arXiv 1804.02767, table 1, without the classifier."""
    stages: Stages = [[ConvBlock(3, 32, 3)]]
    for level, blocks in enumerate((1, 2, 8, 8, 4)):
        channels = 64 * 2**level
        stages.append(
            [ConvBlock(channels // 2, channels, 3, 2), *(Residual(channels, channels // 2) for _ in range(blocks))]
        )
    return stages


def _yolov3_tiny(norm: bool) -> Stages:
    """yolov3-tiny.cfg: its last pool has stride 1 and pads to the right and below."""
    stages: Stages = [_convolutions(3, [16], norm)]
    for channels in (32, 64, 128, 256):
        stages.append([_pool(), *_convolutions(channels // 2, [channels], norm)])
    pool_same = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), float("-inf")), nn.MaxPool2d(2, 1))
    return [*stages, [_pool(), *_convolutions(256, [512], norm), pool_same, *_convolutions(512, [1024], norm)]]


def _yolov1(norm: bool) -> Stages:
    """You Only Look Once, arXiv 1506.02640, figure 3: 24 convolutions, the first of 7x7, two of stride 2."""
    return [
        [ConvBlock(3, 64, 7, 2, norm=norm)],
        [_pool(), *_convolutions(64, [192], norm)],
        [
            _pool(),
            ConvBlock(192, 128, 1, norm=norm),
            *_convolutions(128, [256], norm),
            _same(256, norm, 1),
            *_convolutions(256, [512], norm),
        ],
        [_pool(), *_convolutions(512, [256, 512] * 4, norm), _same(512, norm, 1), *_convolutions(512, [1024], norm)],
        [_pool(), *_convolutions(1024, [512, 1024] * 2, norm), _same(1024, norm, 3)],
        [ConvBlock(1024, 1024, 3, 2, norm=norm), _same(1024, norm, 3), _same(1024, norm, 3)],
    ]


def _same(channels: int, norm: bool, kernel_size: int) -> nn.Module:
    return ConvBlock(channels, channels, kernel_size, norm=norm)


def _yolov1_tiny(norm: bool) -> Stages:
    """yolov1-tiny.cfg."""
    stages: Stages = [_convolutions(3, [16], norm)]
    for channels in (32, 64, 128, 256, 512):
        stages.append([_pool(), *_convolutions(channels // 2, [channels], norm)])
    return [*stages, [_pool(), *_convolutions(512, [1024], norm), ConvBlock(1024, 256, 3, norm=norm)]]

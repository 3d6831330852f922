"""CSPDarknet53 of YOLOv4 (Bochkovskiy, Wang, Liao, arXiv 2004.10934) and the trunk of yolov4-tiny, as darknet builds
them. Layers are in the order of yolov4.cfg and yolov4-tiny.cfg.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from detkit.nn.backbones.darknet import Residual, conv_blocks
from detkit.nn.backbones.darknet_weights import load_darknet_weights
from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig
from detkit.nn.blocks import ConvBlock

BLOCKS = (1, 2, 8, 8, 4)  # residual blocks of each stage


class CSPDarknet53Config(StagedConfig):
    """csp_darknet53: YOLOv4, with Mish. csp_darknet53_tiny: yolov4-tiny, with leaky ReLU."""

    name: Literal["csp_darknet53", "csp_darknet53_tiny"] = "csp_darknet53"
    strides: tuple[int, ...] = (8, 16, 32)
    weights: str | None = None  # a darknet file that begins with this trunk, such as yolov4.conv.137; null: random

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return (1, 2, 4, 8, 16, 32) if self.name == "csp_darknet53" else (4, 8, 16, 32)


class CSPStage(nn.Module):
    """Half the size, then residual blocks in one part of the channels and nothing in the other.

    width  channels of either part
    """

    def __init__(self, in_channels: int, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.down = ConvBlock(in_channels, channels, 3, 2, act="mish")
        self.side, self.main = (ConvBlock(channels, width, 1, act="mish") for _ in range(2))
        hidden = width // 2 if width == channels else width  # the first stage alone narrows within its blocks
        self.blocks = nn.Sequential(*(Residual(width, hidden, act="mish") for _ in range(blocks)))
        self.after = ConvBlock(width, width, 1, act="mish")
        self.merge = ConvBlock(2 * width, channels, 1, act="mish")

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        main = self.after(self.blocks(self.main(x)))
        y: Tensor = self.merge(torch.cat([main, self.side(x)], dim=1))
        return y


class TinyStage(nn.Module):
    """`[B, C, H, W]` -> `[B, 2 C', H, W]`: a 3x3 convolution, and its second half of channels through three more."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.first = ConvBlock(in_channels, channels, 3)
        self.second, self.third = ConvBlock(half, half, 3), ConvBlock(half, half, 3)
        self.merge = ConvBlock(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first.chunk(2, dim=1)[1])
        joined = torch.cat([self.third(second), second], dim=1)
        return torch.cat([first, self.merge(joined)], dim=1)


class SecondHalf(nn.Module):
    """The last half of the channels: the neck of yolov4-tiny takes the last convolution of a stage alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.chunk(2, dim=1)[1]


def build_csp_darknet53(config: CSPDarknet53Config) -> StagedBackbone:
    stages = _stages() if config.name == "csp_darknet53" else _tiny_stages()
    backbone = StagedBackbone(stages, config.strides, config.frozen_stages)
    if config.weights:
        load_darknet_weights(Path(config.weights), conv_blocks(backbone), allow_rest=True)
    return backbone


def _stages() -> list[Stage]:
    stages, channels = [Stage({"stem": ConvBlock(3, 32, 3, act="mish")}, 1, 32)], 32
    for number, blocks in enumerate(BLOCKS, start=1):
        out = 2 * channels
        stage = CSPStage(channels, out, out if number == 1 else channels, blocks)
        stages.append(Stage({f"stage{number}": stage}, 2**number, out))
        channels = out
    return stages


def _tiny_stages() -> list[Stage]:
    stages, channels = [], 64
    for number, width in enumerate((64, 128, 256), start=1):
        before: list[nn.Module] = (
            [ConvBlock(3, 32, 3, 2), ConvBlock(32, 64, 3, 2)] if number == 1 else [nn.MaxPool2d(2, 2)]
        )
        layers = nn.Sequential(*before, TinyStage(channels, width))
        stages.append(Stage({f"stage{number}": layers}, 2 ** (number + 1), width, output=SecondHalf()))
        channels = 2 * width
    stages.append(Stage({"stage4": nn.Sequential(nn.MaxPool2d(2, 2), ConvBlock(channels, 512, 3))}, 32, 512))
    return stages

"""The neck of YOLOv4 (Bochkovskiy, Wang, Liao, arXiv 2004.10934, section 3.4): spatial pyramid pooling, and a path
aggregation network that joins levels instead of adding them.

Shapes: levels finest first, `[B, C_l, H_l, W_l]` -> as many levels of C_l channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.blocks import SPP, ConvBlock
from detkit.nn.necks.neck import Neck


class YOLOv4NeckConfig(Config):
    name: Literal["yolov4"] = "yolov4"


class YOLOv4Neck(Neck):
    """From coarse to fine and back, with leaky ReLU, and a 3x3 convolution before the predictions of each level."""

    def __init__(self, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        coarsest = in_channels[-1]
        half = coarsest // 2
        self.pyramid = nn.Sequential(
            *alternating(coarsest, half, 3), SPP(), ConvBlock(4 * half, half, 1), *alternating(half, half, 3)[1:]
        )
        self.reduce, self.lateral, self.top_down = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for coarse, fine in pairwise(reversed(in_channels)):  # coarsest first, as the layers run
            self.reduce.append(ConvBlock(coarse // 2, fine // 2, 1))
            self.lateral.append(ConvBlock(fine, fine // 2, 1))
            self.top_down.append(nn.Sequential(*alternating(fine, fine // 2, 5)))
        self.output = nn.ModuleList(ConvBlock(channels // 2, channels, 3) for channels in in_channels)
        self.down, self.bottom_up = nn.ModuleList(), nn.ModuleList()
        for fine, coarse in pairwise(in_channels):
            self.down.append(ConvBlock(fine // 2, coarse // 2, 3, 2))
            self.bottom_up.append(nn.Sequential(*alternating(coarse, coarse // 2, 5)))
        self.out_channels, self.out_strides = tuple(in_channels), tuple(in_strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        x = self.pyramid(features[-1])
        maps = [x]  # finest first
        for level, reduce, lateral, body in zip(
            features[-2::-1], self.reduce, self.lateral, self.top_down, strict=True
        ):
            upsampled = F.interpolate(reduce(x), scale_factor=2.0, mode="nearest")
            x = body(torch.cat([lateral(level), upsampled], dim=1))
            maps.insert(0, x)
        levels = [self.output[0](x)]
        for level, down, body, output in zip(maps[1:], self.down, self.bottom_up, self.output[1:], strict=True):
            x = body(torch.cat([down(x), level], dim=1))
            levels.append(output(x))
        return levels


def alternating(in_channels: int, width: int, count: int) -> list[nn.Module]:
    """`count` convolutions, 1x1 to `width` channels and 3x3 to twice as many in turn."""
    layers: list[nn.Module] = []
    channels = in_channels
    for number in range(count):
        out = width if number % 2 == 0 else 2 * width
        layers.append(ConvBlock(channels, out, 1 if number % 2 == 0 else 3))
        channels = out
    return layers

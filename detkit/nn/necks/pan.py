"""A path aggregation network (Liu et al., arXiv 1803.01534) of cross stage partial blocks: YOLOv5's and YOLOX's.

Shapes: levels finest first, `[B, C_l, H_l, W_l]` -> as many levels of the same channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.csp import CSP, conv, spatial_conv
from detkit.nn.necks.neck import Neck


class PANConfig(Config):
    """Defaults: that of YOLOX-s."""

    name: Literal["pan"] = "pan"
    blocks: int = Field(1, ge=1)  # bottlenecks on each level and way; 3 times the depth of the backbone
    depthwise: bool = False  # 3x3 convolutions of each channel alone (YOLOX-nano)


class PAN(Neck):
    """From coarse to fine, each level joined with the one above it, and back from fine to coarse."""

    def __init__(self, config: PANConfig, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        blocks, depthwise = config.blocks, config.depthwise
        self.lateral, self.top_down = nn.ModuleList(), nn.ModuleList()  # coarsest first, as the layers run
        self.down, self.bottom_up = nn.ModuleList(), nn.ModuleList()  # finest first
        for coarse, fine in pairwise(reversed(in_channels)):
            self.lateral.append(conv(coarse, fine, 1))
            self.top_down.append(CSP(2 * fine, fine, blocks, shortcut=False, depthwise=depthwise))
        for fine, coarse in pairwise(in_channels):
            self.down.append(spatial_conv(fine, fine, 2, depthwise=depthwise))
            self.bottom_up.append(CSP(2 * fine, coarse, blocks, shortcut=False, depthwise=depthwise))
        self.out_channels, self.out_strides = tuple(in_channels), tuple(in_strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        x = features[-1]
        laterals: list[Tensor] = []
        for finer, lateral, merge in zip(features[-2::-1], self.lateral, self.top_down, strict=True):
            laterals.insert(0, lateral(x))
            x = merge(torch.cat([F.interpolate(laterals[0], scale_factor=2.0, mode="nearest"), finer], dim=1))
        levels = [x]
        for lateral_map, down, merge in zip(laterals, self.down, self.bottom_up, strict=True):
            levels.append(merge(torch.cat([down(levels[-1]), lateral_map], dim=1)))
        return levels

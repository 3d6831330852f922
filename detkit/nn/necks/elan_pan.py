"""The neck of YOLOv7 (Wang, Bochkovskiy, Liao, arXiv 2207.02696): a path aggregation network of ELAN blocks.

Shapes: levels finest first, `[B, C_l, H_l, W_l]` -> three levels, finest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.blocks import Activation
from detkit.nn.csp import conv
from detkit.nn.elan import ELAN, SPPCSPC, Downsample, Taps
from detkit.nn.necks.neck import Neck


class ELANPANTable(NamedTuple):
    """
    pyramid  channels of the coarsest level after its pools
    lateral  channels of the levels of stride 16 and 8 on the way down, which are those of the blocks there
    sides    channels of the 1x1 convolutions in the blocks of stride 16 and 8, and again of 16 and 32
    out      channels of the levels of stride 16 and 32 on the way up
    """

    pyramid: int
    lateral: tuple[int, int]
    sides: tuple[int, int, int, int]
    out: tuple[int, int]
    halved: bool  # the 3x3 convolutions have half the channels of the 1x1 ones
    convs: int
    taps: Taps


TABLES = {
    "elan_pan_tiny": ELANPANTable(256, (128, 64), (64, 32, 64, 128), (128, 256), False, 2, "in_order"),
    "elan_pan": ELANPANTable(512, (256, 128), (256, 128, 256, 512), (256, 512), True, 4, "all"),
    "elan_pan_x": ELANPANTable(640, (320, 160), (256, 128, 256, 512), (320, 640), False, 6, "pairs"),
}


class ELANPANConfig(Config):
    """elan_pan_tiny, elan_pan and elan_pan_x: the necks of yolov7-tiny, yolov7 and yolov7x."""

    name: Literal["elan_pan_tiny", "elan_pan", "elan_pan_x"] = "elan_pan"


class ELANPAN(Neck):
    """From coarse to fine, each level joined with the one above it, and back from fine to coarse."""

    def __init__(self, config: ELANPANConfig, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        table, self.tiny = TABLES[config.name], config.name == "elan_pan_tiny"
        act: Activation = "leaky" if self.tiny else "swish"

        def block(channels: int, out: int, side: int) -> ELAN:
            hidden = side // 2 if table.halved else side
            return ELAN(channels, out, side=side, hidden=hidden, convs=table.convs, taps=table.taps, act=act)

        self.pyramid = SPPCSPC(in_channels[-1], table.pyramid, tiny=self.tiny)
        before = (table.pyramid, *table.lateral)
        self.reduce, self.lateral, self.top_down = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for step, (width, fine) in enumerate(zip(table.lateral, in_channels[-2::-1], strict=True)):
            self.reduce.append(conv(before[step], width, 1, act=act))
            self.lateral.append(conv(fine, width, 1, act=act))
            self.top_down.append(block(2 * width, width, table.sides[step]))
        self.down, self.bottom_up = nn.ModuleList(), nn.ModuleList()
        width = table.lateral[1]
        for step, (joined, out) in enumerate(zip((table.lateral[0], table.pyramid), table.out, strict=True)):
            down = conv(width, 2 * width, 3, 2, act=act) if self.tiny else Downsample(width, width)
            self.down.append(down)
            self.bottom_up.append(block(2 * width + joined, out, table.sides[2 + step]))
            width = out
        self.out_channels = (table.lateral[1], *table.out)
        self.out_strides = tuple(in_strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = features
        maps = [self.pyramid(coarse)]
        for reduce, lateral, block, level in zip(self.reduce, self.lateral, self.top_down, (middle, fine), strict=True):
            upsampled = F.interpolate(reduce(maps[-1]), scale_factor=2.0, mode="nearest")
            maps.append(block(torch.cat([lateral(level), upsampled], dim=1)))
        levels = [maps[-1]]
        for down, block, joined in zip(self.down, self.bottom_up, (maps[1], maps[0]), strict=True):
            levels.append(block(torch.cat([down(levels[-1]), joined], dim=1)))
        return levels

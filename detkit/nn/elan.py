"""Efficient layer aggregation and what else YOLOv7 is made of (Wang, Bochkovskiy, Liao, arXiv 2207.02696, section 3).

Shapes: `[B, C, H, W]` -> `[B, C', H', W']`. Convolutions are followed by a batch norm of eps 1e-3 and momentum .03.
Branches are in the order of darknet's files: yolov7.cfg, yolov7x.cfg, yolov7-tiny.cfg.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.blocks import Activation
from detkit.nn.csp import conv

Taps = Literal["pairs", "all", "in_order"]


class ELAN(nn.Module):
    """Two 1x1 convolutions, a chain of 3x3 ones after the second, and a 1x1 that joins several of their outputs.

    side, hidden  channels of the 1x1 and of the 3x3 convolutions
    taps          pairs: the outputs after every second 3x3 one; all: after each; both last first, then those of the
                  1x1 ones, second first. in_order: all, first first (yolov7-tiny)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        side: int,
        hidden: int,
        convs: int,
        taps: Taps,
        act: Activation = "swish",
    ) -> None:
        super().__init__()
        self.side, self.first = conv(in_channels, side, 1, act=act), conv(in_channels, side, 1, act=act)
        widths = [side] + [hidden] * convs
        self.convs = nn.ModuleList(conv(widths[i], hidden, 3, act=act) for i in range(convs))
        self.taps = taps
        joined = 2 * side + hidden * (convs // 2 if taps == "pairs" else convs)
        self.merge = conv(joined, out_channels, 1, act=act)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.side(x), self.first(x)]
        for layer in self.convs:
            maps.append(layer(maps[-1]))
        if self.taps == "pairs":
            maps = [maps[0], maps[1], *maps[3::2]]
        y: Tensor = self.merge(torch.cat(maps if self.taps == "in_order" else maps[::-1], dim=1))
        return y


class Downsample(nn.Module):
    """Half the size by a max pool in one half of the channels, and by a convolution in the other ("MP")."""

    def __init__(self, in_channels: int, half: int) -> None:
        super().__init__()
        self.pooled = conv(in_channels, half, 1)
        self.reduce, self.strided = conv(in_channels, half, 1), conv(half, half, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.max_pool2d(x, 2))
        return torch.cat([self.strided(self.reduce(x)), pooled], dim=1)


class SPPCSPC(nn.Module):
    """Max pools of 5, 9 and 13 cells within a cross stage partial block; tiny: with fewer convolutions around them."""

    def __init__(self, in_channels: int, out_channels: int, *, tiny: bool = False) -> None:
        super().__init__()
        act: Activation = "leaky" if tiny else "swish"
        width = out_channels
        self.side = conv(in_channels, width, 1, act=act)
        before = [conv(in_channels, width, 1, act=act)]
        if not tiny:
            before += [conv(width, width, 3, act=act), conv(width, width, 1, act=act)]
        self.before = nn.Sequential(*before)
        after = [conv(4 * width, width, 1, act=act)]
        if not tiny:
            after.append(conv(width, width, 3, act=act))
        self.after = nn.Sequential(*after)
        self.merge = conv(2 * width, out_channels, 1, act=act)
        self.tiny, self.out_channels = tiny, out_channels

    def forward(self, x: Tensor) -> Tensor:
        side, maps = self.side(x), [self.before(x)]
        for _ in range(3):  # a pool of 5 cells after one of 5 is a pool of 9
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        main = self.after(torch.cat(maps[::-1] if self.tiny else maps, dim=1))
        y: Tensor = self.merge(torch.cat([side, main] if self.tiny else [main, side], dim=1))
        return y

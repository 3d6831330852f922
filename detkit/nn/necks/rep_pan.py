"""The neck of YOLOv6 from release 0.3 on (Li et al., arXiv 2301.05586, section 2.1): a path aggregation network that
joins three levels at a time on its way down.

Shapes: levels finest first, `[B, C_l, H_l, W_l]` -> all but the finest, finest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.csp import conv
from detkit.nn.necks.neck import Neck
from detkit.nn.reparam import FORMS, FormName


class RepPANConfig(Config):
    """Defaults: that of YOLOv6-s."""

    name: Literal["rep_pan"] = "rep_pan"
    form: FormName = "rep"  # as for the backbone
    blocks: int = Field(4, ge=1)  # on each level and way; 12 times the depth of the backbone


class BiConcat(nn.Module):
    """The upsampled coarser level, the level itself and the downsampled finer one, joined ("BiC")."""

    def __init__(self, level: int, finer: int, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.level = conv(level, channels, 1, act="relu")
        self.finer = conv(finer, channels, 1, act="relu")
        self.down = conv(channels, channels, 3, 2, act="relu")
        self.merge = conv(3 * channels, channels, 1, act="relu")

    def forward(self, coarser: Tensor, level: Tensor, finer: Tensor) -> Tensor:
        maps = [self.up(coarser), self.level(level), self.down(self.finer(finer))]
        y: Tensor = self.merge(torch.cat(maps, dim=1))
        return y


class RepPAN(Neck):
    """From coarse to fine, each level joined with both of its neighbours, and back from fine to coarse.

    A level has the channels of the next finer one of the backbone.
    """

    def __init__(self, config: RepPANConfig, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        form, widths = FORMS[config.form], list(in_channels[:-1])
        self.reduce, self.join, self.top_down = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()  # coarsest first
        before = in_channels[-1]
        for number in reversed(range(len(widths) - 1)):
            width = widths[number]
            self.reduce.append(conv(before, width, 1, act="relu"))
            self.join.append(BiConcat(in_channels[number + 1], in_channels[number], width))
            self.top_down.append(form.stage(width, width, config.blocks))
            before = width
        self.down, self.bottom_up = nn.ModuleList(), nn.ModuleList()  # finest first
        for width, out in pairwise(widths):
            self.down.append(conv(width, width, 3, 2, act="relu"))
            self.bottom_up.append(form.stage(2 * width, out, config.blocks))
        self.out_channels, self.out_strides = tuple(widths), tuple(in_strides[1:])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        x = features[-1]
        laterals: list[Tensor] = []
        for number, (reduce, join, block) in enumerate(zip(self.reduce, self.join, self.top_down, strict=True)):
            laterals.insert(0, reduce(x))
            level, finer = features[-2 - number], features[-3 - number]
            x = block(join(laterals[0], level, finer))
        levels = [x]
        for lateral, down, block in zip(laterals, self.down, self.bottom_up, strict=True):
            levels.append(block(torch.cat([down(levels[-1]), lateral], dim=1)))
        return levels

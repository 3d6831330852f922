"""EfficientRep, the trunk of YOLOv6 (Li et al., arXiv 2209.02976, section 2.1, and 2301.05586, section 2.1)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detkit.nn.backbones.csp_darknet import scaled_depth
from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig
from detkit.nn.blocks import Activation
from detkit.nn.csp import conv
from detkit.nn.reparam import FORMS, FormName

STRIDES = (2, 4, 8, 16, 32)
BLOCKS = (6, 12, 18, 6)


class EfficientRepConfig(StagedConfig):
    """Defaults: that of YOLOv6-s. The stages have 64, 128, 256, 512 and 1024 channels times `width`."""

    name: Literal["efficient_rep"] = "efficient_rep"
    strides: tuple[int, ...] = (4, 8, 16, 32)
    # rep: chains of re-parameterised blocks, and pools within a cross stage partial block (n, s); csp_rep: cross stage
    # partial blocks of them (m), csp_conv: of plain convolutions with SiLU (l), both with pools alone
    form: FormName = "rep"
    depth: float = Field(1 / 3, gt=0)  # factor on the number of blocks of a stage
    width: float = Field(0.5, gt=0)  # factor on the channels

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES


class Pools(nn.Module):
    """The map beside its max pools of 5, 9 and 13 cells, between convolutions ("SimSPPF"); with `csp` half of the
    channels pass beside all of that ("SimCSPSPPF")."""

    def __init__(self, channels: int, *, csp: bool, act: Activation) -> None:
        super().__init__()
        half, out = channels // 2, channels if not csp else channels // 2
        self.before = nn.Sequential(conv(channels, half, 1, act=act))
        self.after = nn.Sequential(conv(4 * half, out, 1, act=act))
        self.side = self.merge = None
        if csp:
            self.before.extend([conv(half, half, 3, act=act), conv(half, half, 1, act=act)])
            self.after.append(conv(half, half, 3, act=act))
            self.side, self.merge = conv(channels, half, 1, act=act), conv(2 * half, channels, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.before(x)]
        for _ in range(3):  # a pool of 5 cells after one of 5 is a pool of 9
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        y: Tensor = self.after(torch.cat(maps, dim=1))
        if self.side is not None and self.merge is not None:
            y = self.merge(torch.cat([self.side(x), y], dim=1))
        return y


def build_efficient_rep(config: EfficientRepConfig) -> StagedBackbone:
    form = FORMS[config.form]
    channels = [int(64 * 2**stage * config.width) for stage in range(5)]
    stages = [Stage({"stem": form.block(3, channels[0], 2)}, STRIDES[0], channels[0])]
    for number, count in enumerate(BLOCKS, start=1):
        before, here = channels[number - 1 : number + 1]
        layers = [form.block(before, here, 2), form.stage(here, here, scaled_depth(count, config.depth))]
        if number == len(BLOCKS):
            layers.append(Pools(here, csp=form.share is None, act=form.act))
        stages.append(Stage({f"stage{number}": nn.Sequential(*layers)}, STRIDES[number], here))
    return StagedBackbone(stages, config.strides, config.frozen_stages)

"""Feature Pyramid Network (Lin et al., arXiv 1612.03144).

Shapes: levels finest first, `[B, C_l, H_l, W_l]` -> `[B, out_channels, H_l, W_l]`, and one coarser level if asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config


class FPNConfig(Config):
    name: Literal["fpn"] = "fpn"
    out_channels: int = Field(256, ge=1)
    extra_level: Literal["pool", "none"] = "pool"  # pool: P6 = P5 subsampled by 2, for the RPN only


class FPN(nn.Module):
    """A 1x1 lateral convolution per level, nearest upsampling, sum, and a 3x3 output convolution, none with a norm."""

    def __init__(self, config: FPNConfig, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        width = config.out_channels
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in in_channels)
        for conv in [*self.lateral, *self.output]:
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)
        self.has_extra_level = config.extra_level == "pool"
        extra = (in_strides[-1] * 2,) if self.has_extra_level else ()
        self.out_strides = (*in_strides, *extra)
        self.out_channels = (config.out_channels,) * len(self.out_strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        merged = [lateral(level) for lateral, level in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        levels = [output(level) for output, level in zip(self.output, merged, strict=True)]
        if self.has_extra_level:
            levels.append(levels[-1][:, :, ::2, ::2])
        return levels

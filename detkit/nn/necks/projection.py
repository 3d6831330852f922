"""Levels of one width without a way between them, for a transformer (Deformable DETR, arXiv 2010.04159, section 5.1).

Shapes: levels finest first, `[B, C_l, H_l, W_l]` -> `[B, out_channels, H_l, W_l]`, and coarser ones, each of half the
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.necks.neck import Neck


class ProjectionConfig(Config):
    name: Literal["projection"] = "projection"
    out_channels: int = Field(256, ge=1)
    extra_levels: int = Field(1, ge=0)  # 3x3 convolutions of stride 2, the first on the backbone's coarsest level
    groups: int = Field(32, ge=1)  # of the norms

    @model_validator(mode="after")
    def _groups_divide(self) -> ProjectionConfig:
        if self.out_channels % self.groups:
            raise ValueError(f"groups: expected a divisor of out_channels, {self.out_channels}, found {self.groups}")
        return self


class Projection(Neck):
    def __init__(self, config: ProjectionConfig, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        width = config.out_channels
        self.levels = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_channels)
        for number in range(config.extra_levels):
            self.levels.append(nn.Conv2d(width if number else in_channels[-1], width, 3, 2, 1))
        self.norms = nn.ModuleList(nn.GroupNorm(config.groups, width) for _ in self.levels)
        for conv in self.levels:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        self.out_channels = (width,) * len(self.levels)
        self.out_strides = (*in_strides, *(in_strides[-1] * 2 ** (i + 1) for i in range(config.extra_levels)))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        levels: list[Tensor] = []
        for number, (conv, norm) in enumerate(zip(self.levels, self.norms, strict=True)):
            own = features[min(number, len(features) - 1)]
            levels.append(norm(conv(own if number <= len(features) else levels[-1])))
        return levels

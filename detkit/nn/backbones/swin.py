"""Swin (Liu et al., arXiv 2103.14030) and Swin V2 (Liu et al., arXiv 2111.09883) from torchvision: strides 4 to 32.

Pictures may have any size: a map is padded to whole windows, and an odd one to whole patches. As in the authors'
detectors, each level has a layer norm of its own.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.nn.backbones.staged import (
    Stage,
    StagedBackbone,
    StagedConfig,
    check_weights,
    set_drop_path,
    torchvision_classifier,
)

STRIDES = (4, 8, 16, 32)


class SwinConfig(StagedConfig):
    name: Literal["swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b"] = "swin_t"
    strides: tuple[int, ...] = STRIDES
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    window: int | None = Field(None, ge=2)  # cells a side; null: as published, 7, and 8 in V2
    drop_path: float = Field(0.2, ge=0, lt=1)  # of the last block; it grows from 0 at the first

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES

    @model_validator(mode="after")
    def _weights_exist(self) -> SwinConfig:
        check_weights(self.name, self.weights)
        return self


def build_swin(config: SwinConfig) -> StagedBackbone:
    features = torchvision_classifier(config.name, config.weights).features
    if config.window is not None:
        for block in features.modules():
            if hasattr(block, "relative_position_index"):
                set_window(block, config.window)
    set_drop_path(features, config.drop_path)
    stages = []
    for number, stride in enumerate(STRIDES):
        before, blocks = features[2 * number], features[2 * number + 1]
        channels = blocks[0].norm1.normalized_shape[0]
        name = f"stage{number + 1}"
        parts = {"patches" if number == 0 else f"merge{number}": before, name: blocks}
        stages.append(Stage(parts, stride, channels, output=ChannelsFirst(channels)))
    return StagedBackbone(stages, config.strides, config.frozen_stages)


class ChannelsFirst(nn.LayerNorm):
    """`[B, H, W, C]` -> `[B, C, H, W]`, normalised."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def set_window(attention: Any, window: int) -> None:
    """Changes the window of a block of torchvision's in place.

    The biases of V1 are interpolated (bicubic); those of V2 are a function of the distance in cells, which stays.
    """
    (before, _), shifted = attention.window_size, any(attention.shift_size)
    attention.window_size, attention.shift_size = [window] * 2, [window // 2 if shifted else 0] * 2
    attention.define_relative_position_index()
    if hasattr(attention, "cpb_mlp"):
        attention.define_relative_position_bias_table()
        table = attention.relative_coords_table  # sign(x) log2(1 + 8 |x|) / 3 of distances divided by their maximum
        distances = table.sign() * ((table.abs() * 3).exp2() - 1) * ((window - 1) / (before - 1))
        attention.relative_coords_table = distances.sign() * (distances.abs() + 1).log2() / 3
        return
    heads = attention.num_heads
    table = attention.relative_position_bias_table.T.view(1, heads, 2 * before - 1, 2 * before - 1)
    resized = F.interpolate(table, (2 * window - 1, 2 * window - 1), mode="bicubic", align_corners=False)
    attention.relative_position_bias_table = nn.Parameter(resized.view(heads, -1).T.contiguous())

"""What the backbones of clips share: levels that keep the time axis, or are pooled over it.

Shapes: clips `[B, 3, T, H, W]` -> levels `[B, C, T_l, H_l, W_l]`, or `[B, C, H_l, W_l]` pooled over time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig
from detkit.structures import Clip

TimePooling = Literal["mean", "max", "none"]


class ClipStagedConfig(StagedConfig):
    """The fields that all backbones of clips share. `strides` are those of space; time has its own in each backbone."""

    frames: int = Field(16, ge=1)  # of a clip; the one that it is of is in the middle
    frame_step: int = Field(1, ge=1)  # frames of the video from one of the clip to the next
    # of every level over all its frames. mean: as the detection heads of AVA (arXiv 1705.08421) and SlowFast; max: as
    # ToI pooling (arXiv 1703.10664); none: the levels keep their time axis
    time_pooling: TimePooling = "mean"

    @property
    def clip(self) -> Clip:
        return Clip(self.frames, self.frame_step, before=self.frames // 2)


class PoolTime(nn.Module):
    """`[B, C, T, H, W]` -> `[B, C, H, W]`: the mean or the maximum over time."""

    def __init__(self, pooling: Literal["mean", "max"]) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=2) if self.pooling == "mean" else x.amax(dim=2)


def build_stages(
    config: ClipStagedConfig, parts: Sequence[Mapping[str, nn.Module]], channels: Sequence[int]
) -> StagedBackbone:
    """The backbone whose stages have these blocks, and give levels of these channels at `config.stage_strides`."""
    stages = []
    for blocks, stride, out_channels in zip(parts, config.stage_strides, channels, strict=True):
        output = None if config.time_pooling == "none" else PoolTime(config.time_pooling)
        stages.append(Stage(blocks, stride, out_channels, output=output))
    return StagedBackbone(stages, config.strides, config.frozen_stages)

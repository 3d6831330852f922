"""What every neck is: feature levels to feature levels."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Neck(nn.Module, ABC):
    """
    out_channels  of the levels that it returns, finest first
    out_strides   of these levels, in input px
    """

    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Levels `[B, C_l, H_l, W_l]`, finest first -> levels, finest first."""

"""Feature Pyramid Network (Lin et al., arXiv 1612.03144).

Shapes: levels finest first, `[B, C_l, H_l, W_l]` -> `[B, out_channels, H_l, W_l]`, and up to two coarser levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.blocks import BatchNorm2d
from detkit.nn.necks.neck import Neck


class FPNConfig(Config):
    """Names of the levels are those of four levels C2 to C5, from which the pyramid P2 to P5 is computed.

    extra_level  pool: P6 is P5 subsampled by 2, for the RPN only (Faster R-CNN).
                 conv_c5: P6 is a 3x3 convolution of stride 2 on C5, P7 another on ReLU(P6) (RetinaNet, arXiv
                 1708.02002, section 4, and torchvision's version 2 of it).
                 conv_p5: the same on P5 (FCOS, arXiv 1904.01355, section 3.2, and torchvision's RetinaNet, version 1)
    """

    name: Literal["fpn"] = "fpn"
    out_channels: int = Field(256, ge=1)
    extra_level: Literal["none", "pool", "conv_c5", "conv_p5"] = "pool"
    norm: Literal["none", "bn"] = "none"  # after each lateral and output convolution, which then has no bias

    @property
    def num_extra_levels(self) -> int:
        """The number of levels beyond those of the backbone."""
        return {"none": 0, "pool": 1, "conv_c5": 2, "conv_p5": 2}[self.extra_level]


class DenseFPNConfig(FPNConfig):
    """The pyramid of detectors that predict on every level, P3 to P7. Defaults: torchvision's RetinaNet and FCOS."""

    extra_level: Literal["none", "pool", "conv_c5", "conv_p5"] = "conv_p5"


class FPN(Neck):
    """A 1x1 lateral convolution per level, nearest upsampling, sum, and a 3x3 output convolution."""

    def __init__(self, config: FPNConfig, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        width = config.out_channels
        self.extra_level = config.extra_level
        self.lateral = nn.ModuleList(_layer(channels, width, 1, config.norm) for channels in in_channels)
        self.output = nn.ModuleList(_layer(width, width, 3, config.norm) for _ in in_channels)
        self.extra = nn.ModuleList()  # P6 and P7
        if config.extra_level in ("conv_c5", "conv_p5"):
            coarsest = in_channels[-1] if config.extra_level == "conv_c5" else width
            self.extra.extend(nn.Conv2d(channels, width, 3, 2, 1) for channels in (coarsest, width))
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        extra_strides = [in_strides[-1] * 2 ** (i + 1) for i in range(config.num_extra_levels)]
        self.out_strides = (*in_strides, *extra_strides)
        self.out_channels = (width,) * len(self.out_strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        merged = [lateral(level) for lateral, level in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + enlarged(merged[i], merged[i - 1].shape[-2:])
        levels = [output(level) for output, level in zip(self.output, merged, strict=True)]
        return [*levels, *self._extra_levels(features[-1], levels[-1])]

    def _extra_levels(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        match self.extra_level:
            case "none":
                return []
            case "pool":
                return [p5[:, :, ::2, ::2]]
            case _:
                conv6, conv7 = self.extra
                p6 = conv6(c5 if self.extra_level == "conv_c5" else p5)
                return [p6, conv7(F.relu(p6))]


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map `[B, C, h, w]` as one of `size` (H, W): row i is row floor(i h / H), and so are the columns.

    A runtime of exported programs rounds i h / H its own way where H is not twice h, so those are told the rows.
    """
    if not torch.compiler.is_compiling():
        return F.interpolate(x, size=(size[0], size[1]), mode="nearest")
    for axis in (2, 3):
        before, after = x.shape[axis], size[axis - 2]
        rows = torch.arange(after, device=x.device) * before // after
        x = x.index_select(axis, rows)
    return x


def _layer(in_channels: int, out_channels: int, kernel_size: int, norm: Literal["none", "bn"]) -> nn.Module:
    if norm == "none":
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, BatchNorm2d(out_channels))

"""SSD's coarser levels after any backbone (Liu et al., arXiv 1512.02325, section 2.1).

Shapes: levels finest first, `[B, C_l, H_l, W_l]` -> the same, and one coarser level for each entry of `out_channels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config, UserError
from detkit.nn.blocks import Activation, ConvBlock, L2Norm
from detkit.nn.necks.neck import Neck

KERNELS = {"stride": (3, 2, 1), "valid": (3, 1, 0), "valid4": (4, 1, 1)}  # kernel size, stride, padding


class ExtraLevelsConfig(Config):
    """Defaults: SSD300. Each level follows from the one before by a 1x1 convolution to half of its own width, and by a
    convolution that makes the map smaller.

    reduce  the latter, for each level. stride: 3x3, stride 2. valid: 3x3 without padding. valid4: 4x4 with a padding of
            1 (the last of SSD512)
    """

    name: Literal["extra_levels"] = "extra_levels"
    out_channels: tuple[int, ...] = (512, 256, 256, 256)
    reduce: tuple[Literal["stride", "valid", "valid4"], ...] = ("stride", "stride", "valid", "valid")
    l2_norm: float | None = Field(
        20.0, gt=0
    )  # initial scale of the finest level's L2 norm over channels; null: no norm
    norm: bool = False  # batch norm after every convolution
    norm_eps: float = Field(1e-5, ge=0)
    norm_momentum: float = Field(0.1, gt=0, le=1)
    act: Activation = "relu"
    depthwise: bool = False  # SSDLite: the convolution of `reduce` is depthwise, and a 1x1 convolution follows

    @property
    def num_extra_levels(self) -> int:
        """The number of levels beyond those of the backbone."""
        return len(self.out_channels)

    @model_validator(mode="after")
    def _one_reduction_a_level(self) -> ExtraLevelsConfig:
        if len(self.reduce) != len(self.out_channels):
            raise ValueError(
                f"reduce: expected {len(self.out_channels)} entries, as out_channels has, found {len(self.reduce)}"
            )
        return self


class ExtraLevels(Neck):
    def __init__(self, config: ExtraLevelsConfig, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        block = partial(
            ConvBlock, norm=config.norm, act=config.act, norm_eps=config.norm_eps, norm_momentum=config.norm_momentum
        )
        self.l2_norm = nn.Identity() if config.l2_norm is None else L2Norm(in_channels[0], config.l2_norm)
        self.levels = nn.ModuleList()
        self.reduce = config.reduce
        channels, strides = in_channels[-1], list(in_strides)
        for width, reduce in zip(config.out_channels, config.reduce, strict=True):
            kernel_size, stride, padding = KERNELS[reduce]
            half = width // 2
            layers = [block(channels, half, 1)]
            if config.depthwise:
                layers.append(block(half, half, kernel_size, stride, padding=padding, groups=half))
                layers.append(block(half, width, 1))
            else:
                layers.append(block(half, width, kernel_size, stride, padding=padding))
            self.levels.append(nn.Sequential(*layers))
            channels = width
            strides.append(strides[-1] * 2)  # nominal: after `valid` the true ratio depends on the input's size
        self.out_channels = (*in_channels, *config.out_channels)
        self.out_strides = tuple(strides)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        levels = [self.l2_norm(features[0]), *features[1:]]
        level = features[-1]
        for layers, reduce in zip(self.levels, self.reduce, strict=True):
            kernel_size, _, padding = KERNELS[reduce]
            least, (height, width) = kernel_size - 2 * padding, level.shape[2:]
            if min(height, width) < least:
                raise UserError(
                    f"neck.reduce: {reduce} needs {least} x {least} cells, found {height} x {width}; "
                    "use a larger input or fewer levels"
                )
            level = layers(level)
            levels.append(level)
        return levels

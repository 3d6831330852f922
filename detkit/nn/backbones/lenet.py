"""LeNet-5 (LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 86(11), 1998, section II-B): level k, stride 2^k,
is what the k-th pooling gives: S2, S4.

Nothing is padded, so maps are smaller than the image over the stride: 32 x 32 gives an S4 of 5 x 5, whose unit i is
centred at pixel 4i + 8 where padding would put it at 4i + 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.backbones.staged import StagedBackbone, check_levels

# Table I: the maps of S2 that each map of C3 sees
C3_INPUTS = "012 123 234 345 045 015 0123 1234 2345 0345 0145 0125 0134 1245 0235 012345"


class LeNetConfig(Config):
    """`connections: sparse` alone is the net of 1998, `dense` alone the one that textbooks have made of it."""

    name: Literal["lenet5"] = "lenet5"
    connections: Literal["dense", "sparse"] = "dense"  # of C3; sparse: Table I, for the published widths
    widths: tuple[int, int] = (6, 16)  # of C1 and C3
    activation: Literal["tanh", "relu"] = "tanh"  # tanh: 1.7159 tanh(2x/3), appendix A
    # subsample: a trainable gain and bias for each map, then the activation; null: subsample if sparse, mean if dense
    pool: Literal["subsample", "mean", "max"] | None = None
    weights: None = None  # there are none
    frozen_stages: int = Field(0, ge=0, le=2)  # 1: C1 and S2, 2: all
    levels: tuple[Literal[1, 2], ...] = (2,)

    @model_validator(mode="after")
    def _levels_and_widths_exist(self) -> LeNetConfig:
        check_levels(self.levels)
        if min(self.widths) < 1:
            raise ValueError(f"widths: expected two widths of at least 1, found {list(self.widths)}")
        if self.connections == "sparse" and self.widths != (6, 16):
            raise ValueError(f"widths: the sparse connections are those of [6, 16], found {list(self.widths)}")
        return self


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x/3), which maps 1 to 1 and -1 to -1."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsample(nn.Module):
    """The sum over each 2 x 2, times a gain, plus a bias, both of the map; starts as the mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 0.25))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2, divisor_override=1) * self.gain + self.bias


class SparseConv2d(nn.Module):
    """A convolution whose map m sees the input maps `inputs[m]` alone: one kernel for each connection."""

    maps: Tensor
    seen: Tensor

    def __init__(self, in_channels: int, inputs: Sequence[Sequence[int]], kernel_size: int) -> None:
        super().__init__()
        maps = torch.tensor([number for number, seen in enumerate(inputs) for _ in seen])
        self.register_buffer("maps", maps, persistent=False)
        self.register_buffer("seen", torch.tensor([channel for seen in inputs for channel in seen]), persistent=False)
        self.shape = (len(inputs), in_channels, kernel_size, kernel_size)
        bound = torch.tensor([len(seen) * kernel_size**2 for seen in inputs]).rsqrt()  # as nn.Conv2d, map by map
        kernels = torch.rand(len(maps), kernel_size, kernel_size) * 2 - 1
        self.weight = nn.Parameter(kernels * bound[maps, None, None])
        self.bias = nn.Parameter((torch.rand(len(inputs)) * 2 - 1) * bound)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.weight.new_zeros(self.shape).index_put((self.maps, self.seen), self.weight)
        return F.conv2d(x, kernels, self.bias)


def build_lenet(config: LeNetConfig) -> StagedBackbone:
    pools = ("s2", "s4")
    return StagedBackbone(
        lenet_trunk(config, in_channels=3),
        taps=[pools[level - 1] for level in config.levels],
        out_channels=[config.widths[level - 1] for level in config.levels],
        out_strides=[2**level for level in config.levels],
        frozen=("c1", "s2", "c3", "s4")[: 2 * config.frozen_stages],
    )


def lenet_trunk(config: LeNetConfig, in_channels: int) -> dict[str, nn.Module]:
    """C1 to S4; the images of 1998 have one channel."""
    narrow, wide = config.widths
    sparse = config.connections == "sparse"
    inputs = [[int(digit) for digit in seen] for seen in C3_INPUTS.split()]
    return {
        "c1": nn.Sequential(nn.Conv2d(in_channels, narrow, 5), lenet_activation(config)),
        "s2": _pool(config, narrow),
        "c3": nn.Sequential(
            SparseConv2d(narrow, inputs, 5) if sparse else nn.Conv2d(narrow, wide, 5), lenet_activation(config)
        ),
        "s4": _pool(config, wide),
    }


def lenet_activation(config: LeNetConfig) -> nn.Module:
    return ScaledTanh() if config.activation == "tanh" else nn.ReLU(inplace=True)


def _pool(config: LeNetConfig, channels: int) -> nn.Module:
    match config.pool or ("subsample" if config.connections == "sparse" else "mean"):
        case "subsample":
            return nn.Sequential(Subsample(channels), lenet_activation(config))
        case "mean":
            return nn.AvgPool2d(2)
        case "max":
            return nn.MaxPool2d(2)

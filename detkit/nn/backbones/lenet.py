"""LeNet-5 (LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 86(11), 1998, section II-B): the outputs of its
two pooling layers, S2 at stride 2 and S4 at stride 4.

Nothing is padded, so that a map is smaller than the image divided by the stride: 32 x 32 gives an S4 of 5 x 5, whose
cell i is centred at pixel 4i + 8; with padding it would be at 4i + 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig, split

STRIDES = (2, 4)
# Table I: the maps of S2 that each map of C3 reads
C3_INPUTS = "012 123 234 345 045 015 0123 1234 2345 0345 0145 0125 0134 1245 0235 012345"


class LeNetConfig(StagedConfig):
    """`connections: sparse` is the network of 1998, `dense` the simplified one of today's textbooks."""

    name: Literal["lenet5"] = "lenet5"
    strides: tuple[int, ...] = (4,)
    frozen_stages: int = Field(0, ge=0)  # of two: C1 and S2, C3 and S4
    weights: None = None  # torchvision has none
    connections: Literal["dense", "sparse"] = "dense"  # of C3; sparse: Table I, for the published widths
    widths: tuple[int, int] = (6, 16)  # of C1 and C3
    activation: Literal["tanh", "relu"] = "tanh"  # tanh: 1.7159 tanh(2x/3), appendix A
    # subsample: a trainable gain and bias for each map, then the activation; null: subsample if sparse, mean if dense
    pool: Literal["subsample", "mean", "max"] | None = None

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES

    @model_validator(mode="after")
    def _widths_exist(self) -> LeNetConfig:
        if min(self.widths) < 1:
            raise ValueError(f"widths: expected two widths of at least 1, found {list(self.widths)}")
        if self.connections == "sparse" and self.widths != (6, 16):
            raise ValueError(f"widths: the sparse connections are those of [6, 16], found {list(self.widths)}")
        return self


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x / 3), which maps 1 to 1 and -1 to -1 (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsample(nn.Module):
    """The sum over each 2 x 2 cells times a gain plus a bias, both learned for each map; starts as the mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((channels, 1, 1), 0.25))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2, divisor_override=1) * self.gain + self.bias


class SparseConv2d(nn.Module):
    """A convolution whose output map m reads only the input maps `inputs[m]`, with one kernel for each connection.

    weight  `[number of connections, kernel_size, kernel_size]`
    """

    out_index: Tensor  # of the output map of each connection
    in_index: Tensor  # of its input map

    def __init__(self, in_channels: int, inputs: Sequence[Sequence[int]], kernel_size: int) -> None:
        super().__init__()
        out_index = torch.tensor([index for index, channels in enumerate(inputs) for _ in channels])
        in_index = torch.tensor([channel for channels in inputs for channel in channels])
        self.register_buffer("out_index", out_index, persistent=False)
        self.register_buffer("in_index", in_index, persistent=False)
        self.shape = (len(inputs), in_channels, kernel_size, kernel_size)
        # the range of nn.Conv2d's initial weights, for each map by the number of its inputs
        bound = torch.tensor([len(channels) * kernel_size**2 for channels in inputs]).rsqrt()
        kernels = torch.rand(len(out_index), kernel_size, kernel_size) * 2 - 1
        self.weight = nn.Parameter(kernels * bound[out_index, None, None])
        self.bias = nn.Parameter((torch.rand(len(inputs)) * 2 - 1) * bound)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.weight.new_zeros(self.shape).index_put((self.out_index, self.in_index), self.weight)
        return F.conv2d(x, kernels, self.bias)


def build_lenet(config: LeNetConfig) -> StagedBackbone:
    parts = split(lenet_trunk(config, in_channels=3), [2, 4])
    stages = [Stage(*stage) for stage in zip(parts, STRIDES, config.widths, strict=True)]
    return StagedBackbone(stages, config.strides, config.frozen_stages)


def lenet_trunk(config: LeNetConfig, in_channels: int) -> dict[str, nn.Module]:
    """C1 to S4: `[B, in_channels, 32, 32]` -> `[B, widths[1], 5, 5]`; the images of 1998 have one channel."""
    narrow, wide = config.widths
    sparse = config.connections == "sparse"
    inputs = [[int(digit) for digit in digits] for digits in C3_INPUTS.split()]
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

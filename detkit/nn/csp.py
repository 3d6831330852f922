"""Cross stage partial blocks (Wang et al., arXiv 1911.11929) as YOLOv5 and YOLOX build them, and their convolutions,
which YOLOv7 has too.

Shapes: `[B, C, H, W]` -> `[B, C', H, W]`. Convolutions are followed by a batch norm of eps 1e-3 and momentum .03, and
by SiLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.nn.blocks import Activation, ConvBlock


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    padding: int | None = None,
    groups: int = 1,
    act: Activation = "swish",
) -> ConvBlock:
    """A convolution with the norm that all of these networks have."""
    return ConvBlock(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=padding,
        groups=groups,
        act=act,
        norm_eps=1e-3,
        norm_momentum=0.03,
    )


def spatial_conv(in_channels: int, out_channels: int, stride: int = 1, *, depthwise: bool = False) -> nn.Module:
    """A 3x3 convolution; depthwise: one of each channel, and then a 1x1 of all."""
    if not depthwise:
        return conv(in_channels, out_channels, 3, stride)
    return nn.Sequential(
        conv(in_channels, in_channels, 3, stride, groups=in_channels), conv(in_channels, out_channels, 1)
    )


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolutions of as many channels, and the input added."""

    def __init__(self, channels: int, *, shortcut: bool, depthwise: bool) -> None:
        super().__init__()
        self.reduce = conv(channels, channels, 1)
        self.expand = spatial_conv(channels, channels, depthwise=depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expand(self.reduce(x))
        return x + y if self.shortcut else y


class CSP(nn.Module):
    """Half of the channels pass through `blocks` bottlenecks and half beside them (YOLOv5's C3, YOLOX's CSPLayer)."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, *, shortcut: bool = True, depthwise: bool = False
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.main, self.side = conv(in_channels, hidden, 1), conv(in_channels, hidden, 1)
        self.blocks = nn.Sequential(
            *(Bottleneck(hidden, shortcut=shortcut, depthwise=depthwise) for _ in range(blocks))
        )
        self.merge = conv(2 * hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        main, side = self.main(x), self.side(x)
        y: Tensor = self.merge(torch.cat([self.blocks(main), side], dim=1))
        return y


class PooledPyramid(nn.Module):
    """The map beside its max pools of 5, 9 and 13 cells, between two 1x1 convolutions (YOLOX's SPP, YOLOv5's SPPF).

    A pool of 5 cells after one of 5 is a pool of 9.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = conv(in_channels, in_channels // 2, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.merge = conv(4 * (in_channels // 2), out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.reduce(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        y: Tensor = self.merge(torch.cat(maps, dim=1))
        return y


class Focus(nn.Module):
    """Each 2 x 2 pixels become channels of one cell, columns first, and then a 3x3 convolution (YOLOX)."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv = conv(12, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        y: Tensor = self.conv(torch.cat(corners, dim=1))
        return y

"""The layers by which D-FINE's encoder joins levels (Peng et al., arXiv 2410.13842): blocks of YOLOv9
(arXiv 2402.13616) with RepVGG convolutions, and the downsampling of YOLOv10 (arXiv 2405.14458).

Shapes: `[B, C, H, W]` -> `[B, C', H', W']`. Norms have torch's eps 1e-5 and momentum .1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.nn.blocks import ConvBlock
from detkit.nn.reparam import CSPRepLayer


class RepELAN(nn.Module):
    """Half of the channels pass through two stages in turn; both halves and both stages are joined ("RepNCSPELAN4").

    in_channels  even
    hidden       channels of the stages
    blocks       RepVGG blocks of each stage
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.reduce = ConvBlock(in_channels, in_channels, 1, act="swish")
        self.stages = nn.ModuleList(
            nn.Sequential(CSPRepLayer(before, hidden, hidden, blocks), ConvBlock(hidden, hidden, 3, act="swish"))
            for before in (in_channels // 2, hidden)
        )
        self.merge = ConvBlock(in_channels + 2 * hidden, out_channels, 1, act="swish")

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.reduce(x).chunk(2, dim=1))
        for stage in self.stages:
            parts.append(stage(parts[-1]))
        y: Tensor = self.merge(torch.cat(parts, dim=1))
        return y


class SeparateDown(nn.Sequential):
    """Channels first, then space: a 1x1 convolution and one of stride 2 in each channel ("SCDown"); no activation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            ConvBlock(in_channels, out_channels, 1, act="linear"),
            ConvBlock(out_channels, out_channels, 3, 2, groups=out_channels, act="linear"),
        )

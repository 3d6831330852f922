"""The layers between trunk and predictions in YOLOv2 and YOLOv3.

Shapes: levels finest first, `[B, C_l, H_l, W_l]` -> levels that the predictions are made from, finest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.blocks import SPP, ConvBlock, Reorg
from detkit.nn.necks.neck import Neck


class PassthroughConfig(Config):
    name: Literal["passthrough"] = "passthrough"


class Passthrough(Neck):
    """YOLOv2: each 2 x 2 cells of the finer level become channels of one cell of the coarser (arXiv 1612.08242,
    section 2).

    Before that yolov2.cfg has a 1x1 convolution to 64 channels, which the paper's text omits.
    """

    def __init__(self, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        fine, coarse = in_channels
        self.coarse = nn.Sequential(ConvBlock(coarse, coarse, 3), ConvBlock(coarse, coarse, 3))
        self.fine = nn.Sequential(ConvBlock(fine, fine // 8, 1), Reorg())
        self.merge = ConvBlock(fine // 2 + coarse, coarse, 3)
        self.out_channels = (coarse,)
        self.out_strides = (in_strides[-1],)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        fine, coarse = features
        coarse = self.coarse(coarse)
        return [self.merge(torch.cat([self.fine(fine), coarse], dim=1))]


class YOLONeckConfig(Config):
    """yolov3: five convolutions a level, as in the paper; yolov3_tiny, yolov4_tiny: one on the coarsest level, as in
    their cfg files."""

    name: Literal["yolov3", "yolov3_tiny", "yolov4_tiny"] = "yolov3"
    spp: bool = False  # spatial pyramid pooling on the coarsest level: yolov3-spp.cfg


class YOLONeck(Neck):
    """From coarse to fine: the output of a level's convolutions goes to the predictions and, upsampled, is concatenated
    with the next finer level."""

    def __init__(self, config: YOLONeckConfig, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        tiny = config.name != "yolov3"
        self.body = nn.ModuleList()  # coarsest level first, as the layers run
        self.output = nn.ModuleList()
        self.lateral = nn.ModuleList()
        out_channels = []
        upsampled = 0  # channels that come from the coarser level
        for depth, channels in enumerate(reversed(in_channels)):
            width = channels // (4 if config.name == "yolov3_tiny" and depth == 0 else 2)
            joined = channels + upsampled
            if tiny:
                self.body.append(ConvBlock(joined, width, 1) if depth == 0 else nn.Identity())
                hidden, out = (width, 2 * width) if depth == 0 else (joined, channels)
            else:
                self.body.append(_five_convolutions(joined, width, spp=config.spp and depth == 0))
                hidden, out = width, 2 * width
            self.output.append(ConvBlock(hidden, out, 3))
            out_channels.append(out)
            if depth + 1 < len(in_channels):
                upsampled = width // 2
                self.lateral.append(ConvBlock(hidden, upsampled, 1))
        self.out_channels = tuple(reversed(out_channels))
        self.out_strides = tuple(in_strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        levels: list[Tensor] = []
        hidden: Tensor | None = None
        for depth, level in enumerate(reversed(features)):
            if hidden is not None:
                upsampled = F.interpolate(self.lateral[depth - 1](hidden), scale_factor=2.0, mode="nearest")
                level = torch.cat([upsampled, level], dim=1)
            hidden = self.body[depth](level)
            levels.insert(0, self.output[depth](hidden))
        return levels


def _five_convolutions(in_channels: int, width: int, *, spp: bool) -> nn.Sequential:
    pyramid = [SPP(), ConvBlock(4 * width, width, 1)] if spp else []
    return nn.Sequential(
        ConvBlock(in_channels, width, 1),
        ConvBlock(width, 2 * width, 3),
        ConvBlock(2 * width, width, 1),
        *pyramid,
        ConvBlock(width, 2 * width, 3),
        ConvBlock(2 * width, width, 1),
    )

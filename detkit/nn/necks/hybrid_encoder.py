"""The neck of RT-DETR (Zhao et al., arXiv 2304.08069, section 4.2): attention within the coarsest level, and a path
aggregation network over all levels.

Shapes: levels finest first, `[B, C_l, H_l, W_l]`, each of half the size of the one before it -> as many levels of
`width` channels and the same sizes. Nothing is masked: the pictures should fill their canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.blocks import ConvBlock
from detkit.nn.necks.elan_fusion import RepELAN, SeparateDown
from detkit.nn.necks.neck import Neck
from detkit.nn.reparam import CSPRepLayer
from detkit.nn.transformer import Encoder, TransformerConfig

BLOCKS = 3  # in the chain of a fusion block at depth 1


class HybridEncoderConfig(Config):
    """Defaults: RT-DETR R50."""

    name: Literal["hybrid_encoder"] = "hybrid_encoder"
    form: Literal["rt_detr", "d_fine"] = "rt_detr"  # of the layers that join levels
    width: int = Field(256, ge=4)  # channels of all levels; a multiple of 4 and of `heads`
    heads: int = Field(8, ge=1)
    layers: int = Field(1, ge=0)  # of the transformer on the coarsest level
    feedforward: int = Field(1024, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    temperature: float = Field(10000.0, gt=1)  # of the position embedding: wavelengths are 2 pi to 2 pi times this
    expansion: float = Field(1.0, gt=0)  # factor on the channels within a fusion block
    depth: float = Field(1.0, gt=0)  # factor on the three blocks of a fusion block

    @property
    def transformer(self) -> TransformerConfig:
        return TransformerConfig(
            width=self.width,
            heads=self.heads,
            encoder_layers=self.layers,
            feedforward=self.feedforward,
            dropout=self.dropout,
            act="gelu",
        )

    @model_validator(mode="after")
    def _divisible(self) -> HybridEncoderConfig:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width: expected a multiple of 4 and of heads ({self.heads}), found {self.width}")
        return self


class HybridEncoder(Neck):
    """project      to `width` channels, finest first
    encoder      of the coarsest level
    lateral      applied to a level before it is joined with the next finer one, coarsest first
    top_down     fusion blocks from coarse to fine
    down         to half the size, finest first
    bottom_up    fusion blocks from fine to coarse
    """

    def __init__(self, config: HybridEncoderConfig, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        width, steps = config.width, len(in_channels) - 1
        self.project = nn.ModuleList(ConvBlock(channels, width, 1, act="linear") for channels in in_channels)
        self.encoder = Encoder(config.transformer)
        self.lateral = nn.ModuleList(lateral_layer(config) for _ in range(steps))
        self.top_down = nn.ModuleList(fusion_block(config) for _ in range(steps))
        self.down = nn.ModuleList(down_layer(config) for _ in range(steps))
        self.bottom_up = nn.ModuleList(fusion_block(config) for _ in range(steps))
        self.out_channels, self.out_strides = (width,) * len(in_channels), tuple(in_strides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        levels = [project(level) for project, level in zip(self.project, features, strict=True)]
        x = self.encode(levels[-1])
        laterals: list[Tensor] = []
        for lateral, fuse, level in zip(self.lateral, self.top_down, levels[-2::-1], strict=True):
            laterals.insert(0, lateral(x))
            upsampled = F.interpolate(laterals[0], scale_factor=2.0, mode="nearest")
            x = fuse(torch.cat([upsampled, level], dim=1))
        outputs = [x]
        for down, fuse, level in zip(self.down, self.bottom_up, laterals, strict=True):
            outputs.append(fuse(torch.cat([down(outputs[-1]), level], dim=1)))
        return outputs

    def encode(self, level: Tensor) -> Tensor:
        """Attention between the cells of one level, `[B, D, h, w]`."""
        height, width = level.shape[2:]
        pos_embed = cell_pos_embed(height, width, self.config.width, self.config.temperature, level.device)
        memory = self.encoder(level.flatten(2).transpose(1, 2), pos_embed.to(level.dtype), None)
        y: Tensor = memory.transpose(1, 2).reshape(level.shape)
        return y


def cell_pos_embed(
    height: int, width: int, channels: int, temperature: float, device: torch.device | None = None
) -> Tensor:
    """Fixed position embedding `[height * width, channels]` of the cells of a map, row by row.

    A quarter of the channels each: the sine and the cosine of the row's number, then those of the column's. The angular
    frequencies fall from 1 to nearly 1 / `temperature`. The authors' code takes columns for rows on maps that are not
    square; this is what it computes on square ones.
    """
    frequencies = temperature ** -(torch.arange(channels // 4, device=device) / (channels // 4))
    rows, columns = (torch.arange(count, device=device)[:, None] * frequencies for count in (height, width))
    rows = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    columns = torch.cat([columns.sin(), columns.cos()], dim=1).expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def lateral_layer(config: HybridEncoderConfig) -> nn.Module:
    """A 1x1 convolution; D-FINE's has no activation."""
    return ConvBlock(config.width, config.width, 1, act="swish" if config.form == "rt_detr" else "linear")


def down_layer(config: HybridEncoderConfig) -> nn.Module:
    """`[B, D, H, W]` -> `[B, D, H / 2, W / 2]`"""
    match config.form:
        case "rt_detr":
            return ConvBlock(config.width, config.width, 3, 2, act="swish")
        case "d_fine":
            return SeparateDown(config.width, config.width)


def fusion_block(config: HybridEncoderConfig) -> nn.Module:
    """Two levels, joined along their channels, `[B, 2 D, H, W]` -> `[B, D, H, W]`."""
    width, blocks = config.width, round(BLOCKS * config.depth)
    match config.form:
        case "rt_detr":
            return CSPRepLayer(2 * width, width, int(width * config.expansion), blocks)
        case "d_fine":
            return RepELAN(2 * width, width, round(width * config.expansion // 2), blocks)

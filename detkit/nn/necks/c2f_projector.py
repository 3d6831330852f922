"""The projector of LW-DETR (Chen et al., arXiv 2406.03459) and of RF-DETR: levels of one stride, joined and brought to
each of several scales.

Shapes: levels `[B, C_l, H, W]`, all of one size -> a level for each scale s, finest first, `[B, width, s H, s W]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.blocks import Activation, ConvBlock
from detkit.nn.necks.neck import Neck

Norm = Literal["bn", "ln"]
SCALES = (2.0, 1.0, 0.5)
WIDE = 512  # maps of more channels lose half of them before they are enlarged


class C2fProjectorConfig(Config):
    """Defaults: that of LW-DETR tiny, small and medium."""

    name: Literal["c2f_projector"] = "c2f_projector"
    width: int = Field(256, ge=2)  # channels of every level that it returns
    scales: tuple[float, ...] = (1.0,)  # factors on the size of the backbone's maps, 2, 1 or 0.5; the largest first
    blocks: int = Field(3, ge=1)  # pairs of convolutions, one after the other, whose outputs are all joined
    norm: Norm = "bn"  # after each convolution; ln: over the channels of each cell (RF-DETR)

    @model_validator(mode="after")
    def _scales_exist(self) -> C2fProjectorConfig:
        if not self.scales or list(self.scales) != [scale for scale in SCALES if scale in self.scales]:
            raise ValueError(f"scales: expected some of {list(SCALES)}, in this order, found {list(self.scales)}")
        return self


class C2fProjector(Neck):
    """samplers  for each scale, for each level that is read
    fuse        for each scale
    norms       for each scale

    Raises ValueError if the levels have not one stride.
    """

    def __init__(self, config: C2fProjectorConfig, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        from torchvision.models.convnext import LayerNorm2d  # seconds to import, so not at the head

        if len(set(in_strides)) != 1:
            raise ValueError(f"backbone.strides: the projector joins levels of one stride, found {list(in_strides)}")
        samplers, fuse = [], []
        for scale in config.scales:
            samplers.append(nn.ModuleList(sampler(channels, scale, config.norm) for channels in in_channels))
            channels = sum(sampled_channels(count, scale) for count in in_channels)
            fuse.append(C2f(channels, config.width, config.blocks, config.norm))
        self.samplers, self.fuse = nn.ModuleList(samplers), nn.ModuleList(fuse)
        self.norms = nn.ModuleList(LayerNorm2d(config.width, eps=1e-6) for _ in config.scales)
        self.out_channels = (config.width,) * len(config.scales)
        self.out_strides = tuple(int(in_strides[0] / scale) for scale in config.scales)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        levels = []
        for samplers, fuse, norm in zip(self.samplers, self.fuse, self.norms, strict=True):
            assert isinstance(samplers, nn.ModuleList)
            maps = [sample(level) for sample, level in zip(samplers, features, strict=True)]
            levels.append(norm(fuse(torch.cat(maps, dim=1))))
        return levels


class C2f(nn.Module):
    """Half of the channels of a 1x1 convolution pass through `blocks` pairs of 3x3 convolutions; what comes out of the
    first convolution and of each pair is joined by the last one."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, norm: Norm) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.reduce = conv(in_channels, 2 * hidden, 1, norm)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(hidden, hidden, 3, norm), conv(hidden, hidden, 3, norm)) for _ in range(blocks)
        )
        self.merge = conv((2 + blocks) * hidden, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        maps = list(self.reduce(x).chunk(2, dim=1))
        for block in self.blocks:
            maps.append(block(maps[-1].contiguous()))
        y: Tensor = self.merge(torch.cat(maps, dim=1))
        return y


def conv(
    in_channels: int, out_channels: int, kernel_size: int, norm: Norm, *, stride: int = 1, act: Activation = "swish"
) -> ConvBlock:
    from torchvision.models.convnext import LayerNorm2d  # seconds to import, so not at the head

    block = ConvBlock(in_channels, out_channels, kernel_size, stride, act=act)
    if norm == "ln":
        block.norm = LayerNorm2d(out_channels, eps=1e-6)
    return block


def sampler(channels: int, scale: float, norm: Norm) -> nn.Module:
    """`[B, C, H, W]` -> `[B, C', s H, s W]`, see `sampled_channels`."""
    if scale == 1.0:
        return nn.Sequential()
    if scale == 0.5:
        return nn.Sequential(conv(channels, channels, 3, norm, stride=2, act="relu"))
    before: list[nn.Module] = []
    if channels > WIDE:
        before, channels = [conv(channels, channels // 2, 1, norm, act="relu")], channels // 2
    return nn.Sequential(*before, nn.ConvTranspose2d(channels, channels // 2, 2, 2))


def sampled_channels(channels: int, scale: float) -> int:
    """Those of a level at a scale: fewer where it is enlarged."""
    if scale <= 1:
        return channels
    return channels // 4 if channels > WIDE else channels // 2

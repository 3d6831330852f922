"""Plain vision transformers (Dosovitskiy et al., arXiv 2010.11929), most of whose blocks attend within windows: that of
LW-DETR (Chen et al., arXiv 2406.03459) and RF-DETR's DINOv2 (Oquab et al., arXiv 2304.07193).

Shapes: images `[B, 3, H, W]` -> levels of one stride, each after one of the blocks, `[B, D, H / patch, W / patch]`.
Within, a sequence for each window, `[B w w, N, D]`: w windows a side, N cells of a window and a class token if there is
one. Pictures may have any size: they are padded to whole windows, and padding is not masked.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig, set_drop_path, split
from detkit.nn.transformer import MLP, Attention

NORM_EPS = 1e-6
MOST_LAYERS = 1000
INIT_STD = 0.02  # of the weights of linear layers and of positions


class WindowedViTConfig(StagedConfig):
    """The fields that both have. `strides` are those of the levels to return, one for each of `taps` or of the last."""

    patch: int = Field(16, ge=1)  # side in input px, and the stride of every level
    width: int = Field(192, ge=1)  # a multiple of `heads`
    layers: int = Field(10, ge=1, le=MOST_LAYERS)
    heads: int = Field(12, ge=1)
    windows: int = Field(4, ge=1)  # a side; 1: every block is global
    taps: tuple[int, ...]  # blocks, counted from 1, after which a level is taken
    positions: int = Field(14, ge=1)  # cells a side of the table of position embeddings, which is interpolated
    drop_path: float = Field(0.0, ge=0, lt=1)  # of the last block; it grows from 0 at the first

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return (self.patch,) * len(self.taps)

    @property
    def attends_globally(self) -> tuple[int, ...]:
        """Blocks, counted from 1, that attend to all windows."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _blocks_exist(self) -> WindowedViTConfig:
        if self.width % self.heads:
            raise ValueError(f"width: expected a multiple of heads, {self.heads}, found {self.width}")
        if list(self.taps) != sorted({*self.taps}) or not all(1 <= tap <= self.layers for tap in self.taps):
            raise ValueError(f"taps: expected ascending numbers from 1 to {self.layers}, found {list(self.taps)}")
        return self


class ViTConfig(WindowedViTConfig):
    """Defaults: that of LW-DETR small. Without a class token; keys have no bias."""

    name: Literal["vit"] = "vit"
    strides: tuple[int, ...] = (16, 16, 16, 16)
    taps: tuple[int, ...] = (3, 5, 6, 10)
    global_blocks: tuple[int, ...] = (3, 5, 6, 9)  # counted from 1; attention of the others stays within windows

    @property
    def attends_globally(self) -> tuple[int, ...]:
        return self.global_blocks


class DINOv2Config(WindowedViTConfig):
    """Defaults: that of RF-DETR small. Each window has the class token. The first block after each tap is global."""

    name: Literal["dinov2"] = "dinov2"
    strides: tuple[int, ...] = (16, 16, 16, 16)
    width: int = Field(384, ge=1)
    layers: int = Field(12, ge=1, le=MOST_LAYERS)
    heads: int = Field(6, ge=1)
    windows: int = Field(2, ge=1)
    taps: tuple[int, ...] = (3, 6, 9, 12)
    positions: int = Field(32, ge=1)

    @property
    def attends_globally(self) -> tuple[int, ...]:
        return tuple(tap + 1 for tap in self.taps)


def build_vit(config: ViTConfig | DINOv2Config) -> StagedBackbone:
    return ViT(config)


class ViT(StagedBackbone):
    """norm  of every level (DINOv2); frozen with the last stage"""

    def __init__(self, config: ViTConfig | DINOv2Config) -> None:
        dino = isinstance(config, DINOv2Config)
        blocks: dict[str, nn.Module] = {"patches": Patches(config, class_token=dino)}
        for number in range(1, config.layers + 1):
            joined = config.windows**2 if number in config.attends_globally else 1
            blocks[f"block{number}"] = Block(config, joined, key_bias=dino, scale=1.0 if dino else 0.1)
        parts = split(blocks, [tap + 1 for tap in config.taps])
        super().__init__(
            [Stage(part, config.patch, config.width) for part in parts], config.strides, config.frozen_stages
        )
        self.config = config
        self.norm = nn.LayerNorm(config.width, NORM_EPS) if dino else nn.Identity()
        if config.frozen_stages == len(parts):
            self.norm.requires_grad_(False)
            self.frozen = (*self.frozen, "norm")
        set_drop_path(self, config.drop_path)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @override
    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[2:]
        patch, whole = self.config.patch, self.config.patch * self.config.windows
        images = F.pad(images, (0, -width % whole, 0, -height % whole))
        padded_height, padded_width = images.shape[2:]
        rows, columns = -(-height // patch), -(-width // patch)
        levels = []
        for sequences in super().forward(images):
            level = self._map(self.norm(sequences), padded_height // patch, padded_width // patch)
            levels.append(level[:, :, :rows, :columns].contiguous())
        return levels

    def _map(self, sequences: Tensor, rows: int, columns: int) -> Tensor:
        """`[B w w, N, D]` -> `[B, D, rows, columns]`"""
        side, width = self.config.windows, self.config.width
        cells = sequences[:, sequences.shape[1] - rows * columns // side**2 :]  # a class token comes first
        windows = cells.reshape(-1, side, side, rows // side, columns // side, width)
        return windows.permute(0, 5, 1, 3, 2, 4).reshape(-1, width, rows, columns)


class Patches(nn.Module):
    """Images `[B, 3, H, W]` -> patches with their positions, window by window, `[B w w, N, D]`.

    positions  `[1, 1 + P P, D]`, that of the class token first, which is not used without one
    """

    def __init__(self, config: WindowedViTConfig, *, class_token: bool) -> None:
        super().__init__()
        self.side, self.windows, self.has_token = config.positions, config.windows, class_token
        self.projection = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.positions = nn.Parameter(torch.empty(1, 1 + self.side**2, config.width))
        nn.init.trunc_normal_(self.positions, std=INIT_STD)
        if class_token:
            self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
            nn.init.trunc_normal_(self.class_token, std=INIT_STD)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.projection(images)
        channels, height, width = x.shape[1:]
        side = self.windows
        x = x + self._position_map(height, width).to(x.dtype)
        x = x.reshape(-1, channels, side, height // side, side, width // side)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(-1, height * width // side**2, channels)
        if not self.has_token:
            return x
        token = (self.class_token + self.positions[:, :1]).to(x.dtype)
        return torch.cat([token.expand(x.shape[0], -1, -1), x], dim=1)

    def _position_map(self, height: int, width: int) -> Tensor:
        """`[1, D, height, width]`; RF-DETR's is smoothed where it shrinks."""
        table = self.positions[:, 1:].reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        if (height, width) == (self.side, self.side):
            return table
        return F.interpolate(
            table.float(), (height, width), mode="bicubic", align_corners=False, antialias=self.has_token
        )


class WindowAttention(Attention):
    """Attention among the cells of each window, or of `joined` consecutive windows, those of a picture."""

    def __init__(self, width: int, heads: int, joined: int, *, key_bias: bool) -> None:
        super().__init__(width, heads, dropout=0.0)
        self.joined = joined
        if not key_bias:
            self.k = nn.Linear(width, width, bias=False)

    @override
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """`[B w w, N, D]`"""
        whole = x.reshape(-1, self.joined * x.shape[1], x.shape[2])
        y: Tensor = super().forward(whole, whole, whole)
        return y.reshape(x.shape)


class Block(nn.Module):
    """Attention and a feed-forward part, each normalised before and scaled after it (pre-norm).

    scale  with which the factors on each channel start
    """

    def __init__(self, config: WindowedViTConfig, joined: int, *, key_bias: bool, scale: float) -> None:
        from torchvision.ops import StochasticDepth  # seconds to import, so not at the head

        super().__init__()
        width = config.width
        self.norm1, self.norm2 = nn.LayerNorm(width, NORM_EPS), nn.LayerNorm(width, NORM_EPS)
        self.attention = WindowAttention(width, config.heads, joined, key_bias=key_bias)
        self.mlp = MLP(width, 4 * width, width, act="gelu")
        self.scale1, self.scale2 = (nn.Parameter(torch.full((width,), scale)) for _ in range(2))
        self.drop_path = StochasticDepth(0.0, "row")  # of each window, as published

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale1 * self.attention(self.norm1(x)))
        y: Tensor = x + self.drop_path(self.scale2 * self.mlp(self.norm2(x)))
        return y

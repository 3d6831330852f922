"""The transformer of set prediction (DETR, arXiv 2005.12872, section A.3): positions enter every attention.

Legend: B images, S cells of the feature map, Q queries, D width.
Sequences are `[B, S or Q, D]`. A mask is True where attention may look, broadcastable to `[B, heads, Q, S]`; None: all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config
from detkit.structures import Size


class TransformerConfig(Config):
    """Defaults: the paper."""

    width: int = Field(256, ge=4)  # a multiple of 4 (sines and cosines of two axes) and of `heads`
    heads: int = Field(8, ge=1)
    encoder_layers: int = Field(6, ge=0)
    decoder_layers: int = Field(6, ge=1)
    feedforward: int = Field(2048, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _divisible(self) -> TransformerConfig:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width: expected a multiple of 4 and of heads ({self.heads}), found {self.width}")
        return self


class Attention(nn.Module):
    """Scaled dot-product attention in several heads. Keys and queries may be wider than values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        for linear in (self.q, self.k, self.v):
            # as part of one [3 D, D] matrix, which is how the published model draws them
            nn.init.xavier_uniform_(linear.weight, gain=2**-0.5)
            nn.init.zeros_(linear.bias)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (self.split(x) for x in (self.q(query), self.k(key), self.v(value)))
        return self.attend(q, k, v, mask)

    def split(self, x: Tensor) -> Tensor:
        """`[B, S, D]` -> `[B, heads, S, D / heads]`"""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).flatten(2))
        return y


class FeedForward(nn.Module):
    """Two layers at every place, added to their input and normalised after (post-norm)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.linear1(x), inplace=True))
        y: Tensor = self.norm(x + self.dropout(self.linear2(hidden)))
        return y


class EncoderLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads, config.dropout)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config.width, config.feedforward, config.dropout)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        placed = x + positions
        x = self.norm(x + self.dropout(self.attention(placed, placed, x, mask)))
        y: Tensor = self.feedforward(x)
        return y


class DecoderLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config.width, config.heads, config.dropout)
        self.self_norm = nn.LayerNorm(config.width)
        self.cross_attention = Attention(config.width, config.heads, config.dropout)
        self.cross_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config.width, config.feedforward, config.dropout)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, placed_memory: Tensor, mask: Tensor | None) -> Tensor:
        placed = x + queries
        x = self.self_norm(x + self.dropout(self.self_attention(placed, placed, x)))
        x = self.cross_norm(x + self.dropout(self.cross_attention(x + queries, placed_memory, memory, mask)))
        y: Tensor = self.feedforward(x)
        return y


class Encoder(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, positions, mask)
        return x


class Decoder(nn.Module):
    """Object queries `[B, Q, D]`, which are positions, fill an empty sequence from the memory `[B, S, D]`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, queries: Tensor, memory: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """What every layer says, normalised by one shared norm: `[layers, B, Q, D]`."""
        placed_memory = memory + positions
        x, said = torch.zeros_like(queries), []
        for layer in self.layers:
            x = layer(x, queries, memory, placed_memory, mask)
            said.append(self.norm(x))
        return torch.stack(said)


class MLP(nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-1])


def padding_mask(sizes: Sequence[Size], canvas: Size, cells: Size, device: torch.device) -> Tensor:
    """Bool `[B, h, w]`, True at padding: cells of a map `cells` whose first pixel lies beyond the image.

    sizes   (h, w) px of each image, which lies in the upper left corner of the `canvas` (h, w) px
    """
    inside = []
    for axis in (0, 1):
        first_pixel = torch.arange(cells[axis], device=device) * canvas[axis] // cells[axis]
        inside.append(first_pixel < torch.tensor([size[axis] for size in sizes], device=device)[:, None])
    return ~(inside[0][:, :, None] & inside[1][:, None, :])


def map_positions(padding: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Fixed positions `[B, h, w, D]` of the cells of a map: sines of y, then of x, each counted from 1 to its last cell
    that is no padding, as parts of 2 pi (section A.4; `padding` bool `[B, h, w]`)."""
    place, last = map_places(padding)
    return sine_embedding(place / (last + 1e-6), width, temperature)


def map_places(padding: Tensor) -> tuple[Tensor, Tensor]:
    """Float `[B, h, w, 2]` each: the row and column of every cell, counted from 1, and those of the last cell of its
    column and row that is no padding (`padding` bool `[B, h, w]`)."""
    inside = ~padding
    rows, columns = inside.cumsum(1).float(), inside.cumsum(2).float()
    last = torch.stack([rows[:, -1:].expand_as(rows), columns[:, :, -1:].expand_as(columns)], dim=-1)
    return torch.stack([rows, columns], dim=-1), last


def sine_embedding(parts: Tensor, width: int, temperature: float) -> Tensor:
    """Numbers `[..., N]` in [0, 1] -> `[..., D]`: each as D / N sines and cosines in turn, of wavelengths from 1 to
    `temperature` (Vaswani et al., arXiv 1706.03762, section 3.5)."""
    count = width // parts.shape[-1]
    exponent = torch.arange(count, device=parts.device) // 2 * 2 / count
    angles = parts[..., None] * (2 * math.pi) / temperature**exponent
    waves = torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1)
    return waves.flatten(-3)

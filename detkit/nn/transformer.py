"""The transformer of set prediction (DETR, arXiv 2005.12872, section A.3): position embeddings enter every attention.

Legend: B images, S cells of the feature map, Q queries, D width, L decoder layers.
Sequences are `[B, S or Q, D]`. The memory is the output of the encoder. A mask is bool, broadcastable to
`[B, heads, Q, S]`, and True at cells that may be attended to; None: all.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.blocks import Activation, activation
from detkit.structures import Size


class TransformerConfig(Config):
    """Defaults: DETR R50."""

    width: int = Field(256, ge=4)  # a multiple of 4 (sines and cosines of two axes) and of `heads`
    heads: int = Field(8, ge=1)
    encoder_layers: int = Field(6, ge=0)
    decoder_layers: int = Field(6, ge=1)
    feedforward: int = Field(2048, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    act: Activation = "relu"  # between the two layers of the feed-forward part

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
            # Xavier's bound of one [3 D, D] matrix, in which the published model has all three.
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


class CrossAttention(Attention):
    """Queries attend to a memory; position embeddings are added to queries and keys, but not to values."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, query_pos: Tensor, memory: Tensor, pos_embed: Tensor, mask: Tensor | None
    ) -> Tensor:
        return super().forward(hidden + query_pos, memory + pos_embed, memory, mask)


class FeedForward(nn.Module):
    """Two linear layers for each element of a sequence, added to their input and normalised after (post-norm)."""

    def __init__(self, width: int, hidden: int, dropout: float, act: Activation = "relu") -> None:
        super().__init__()
        self.act = activation(act)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.act(self.linear1(x)))
        y: Tensor = self.norm(x + self.dropout(self.linear2(hidden)))
        return y


class EncoderLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.heads, config.dropout)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config.width, config.feedforward, config.dropout, config.act)

    def forward(self, hidden: Tensor, pos_embed: Tensor, mask: Tensor | None) -> Tensor:
        with_pos = hidden + pos_embed
        hidden = self.norm(hidden + self.dropout(self.attention(with_pos, with_pos, hidden, mask)))
        y: Tensor = self.feedforward(hidden)
        return y


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the memory."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config.width, config.heads, config.dropout)
        self.self_norm = nn.LayerNorm(config.width)
        self.cross_attention: Attention = CrossAttention(config.width, config.heads, config.dropout)
        self.cross_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config.width, config.feedforward, config.dropout, config.act)

    def forward(
        self, hidden: Tensor, query_pos: Tensor, memory: Tensor, pos_embed: Tensor, mask: Tensor | None
    ) -> Tensor:
        """
        hidden  `[B, Q, D]` with the position embedding `query_pos`, `[B, Q, D]`
        memory  `[B, S, D]` with the position embedding `pos_embed`, `[B, S, D]`
        """
        with_pos = hidden + query_pos
        hidden = self.self_norm(hidden + self.dropout(self.self_attention(with_pos, with_pos, hidden)))
        attended = self.cross_attention(hidden, query_pos, memory, pos_embed, mask)
        hidden = self.cross_norm(hidden + self.dropout(attended))
        y: Tensor = self.feedforward(hidden)
        return y


class Encoder(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, hidden: Tensor, pos_embed: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, pos_embed, mask)
        return hidden


class Decoder(nn.Module):
    """DETR's decoder: hidden states start at zero, and the object queries are learned position embeddings."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, query_pos: Tensor, memory: Tensor, pos_embed: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the hidden states `[L, B, Q, D]` after every layer, normalised by one shared norm."""
        hidden, hidden_states = torch.zeros_like(query_pos), []
        for layer in self.layers:
            hidden = layer(hidden, query_pos, memory, pos_embed, mask)
            hidden_states.append(self.norm(hidden))
        return torch.stack(hidden_states)


class MLP(nn.Sequential):
    """Linear layers with an activation between them."""

    def __init__(self, *widths: int, act: Activation = "relu") -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), activation(act)]
        super().__init__(*layers[:-1])


def zero_output(mlp: MLP) -> MLP:
    """Makes every output of `mlp` 0 before training."""
    last = mlp[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return mlp


def padding_mask(sizes: Tensor, canvas: Size, cells: Size) -> Tensor:
    """bool `[B, h, w]`, True at padding: cells of a map whose first pixel lies beyond the picture.

    sizes   int64 `[B, 2]`: (h, w) in px of each picture, which lies in the upper left corner of the canvas
    canvas  (h, w) in px
    cells   (h, w) of the map
    """
    inside = []
    for axis in (0, 1):
        first_pixels = torch.arange(cells[axis], device=sizes.device) * canvas[axis] // cells[axis]
        inside.append(first_pixels < sizes[:, axis, None])
    return ~(inside[0][:, :, None] & inside[1][:, None, :])


def map_pos_embed(padding: Tensor, width: int, temperature: float, *, centered: bool = False) -> Tensor:
    """Fixed position embedding `[B, h, w, D]` of the cells of a map (section A.4): sines of y, then of x.

    Rows and columns are counted from 1, relative to the last one that is no padding. `padding` is bool `[B, h, w]`.

    centered  they are counted from 0.5, the middle of the first one (Deformable DETR)
    """
    cells, last = count_cells(padding)
    if centered:
        cells = cells - 0.5
    return sine_embedding(cells / (last + 1e-6), width, temperature)


def count_cells(padding: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every cell, counted from 1 and without padding, bool `[B, h, w]`.

    Returns two float tensors `[B, h, w, 2]`: (row, column) of the cell, and (row, column) of the last cell that is no
    padding in the same column and row.
    """
    inside = ~padding
    rows, columns = inside.cumsum(1).float(), inside.cumsum(2).float()
    last = torch.stack([rows[:, -1:].expand_as(rows), columns[:, :, -1:].expand_as(columns)], dim=-1)
    return torch.stack([rows, columns], dim=-1), last


def sine_embedding(parts: Tensor, width: int, temperature: float) -> Tensor:
    """Numbers `[..., N]` in [0, 1] -> `[..., D]`: D / N sines and cosines of each number, in turn.

    Their wavelengths rise from 1 to `temperature` (Vaswani et al., arXiv 1706.03762, section 3.5).
    """
    count = width // parts.shape[-1]
    exponent = torch.arange(count, device=parts.device) // 2 * 2 / count
    angles = parts[..., None] * (2 * math.pi) / temperature**exponent
    waves = torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1)
    return waves.flatten(-3)

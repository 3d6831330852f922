"""The transformer of Deformable DETR (Zhu et al., arXiv 2010.04159): queries attend to few points of several levels.

Legend: B images, L levels, S cells of all levels together (finest level first, row by row), Q queries, D width,
M heads, N points of a query and head.
Positions are x, y or cx, cy, w, h in parts of the picture's sides, padding excluded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.nn.transformer import Attention, FeedForward, TransformerConfig, map_pos_embed, padding_mask, sine_embedding
from detkit.ops.deformable_attention import Sampling, deformable_attention
from detkit.ops.dispatch import is_traced
from detkit.structures import Size

NEAREST_ZERO = 1e-5  # coordinates are this far from 0 and 1 before a logit is taken


class DeformableTransformerConfig(TransformerConfig):
    """Defaults: section A.2."""

    feedforward: int = Field(1024, ge=1)
    # of a query and head in each level, or in the levels in order, finest first
    points: int | tuple[int, ...] = 4
    sampling: Sampling = "bilinear"  # of the decoder's points; discrete: the value of one cell (RT-DETRv2)

    @model_validator(mode="after")
    def _points_exist(self) -> DeformableTransformerConfig:
        points = (self.points,) if isinstance(self.points, int) else self.points
        if min(points, default=0) < 1:
            raise ValueError(f"points: expected at least 1 in each level, found {self.points}")
        return self

    def points_of(self, levels: int) -> tuple[int, ...]:
        """The points in each of so many levels. Raises ValueError if `points` are those of another number of them."""
        points = (self.points,) * levels if isinstance(self.points, int) else self.points
        if len(points) != levels:
            raise ValueError(f"transformer.points: expected one for each of {levels} levels, found {len(points)}")
        return points


@dataclass(frozen=True, eq=False)
class Levels:
    """Where the cells of several levels lie.

    sizes    (h, w) of each level
    padding  bool `[B, S]`, True at cells beyond the picture
    shares   `[B, L, 2]`: parts of the width and height of each level that are the picture
    """

    sizes: list[Size]
    padding: Tensor
    shares: Tensor

    @staticmethod
    def of(features: Sequence[Tensor], pictures: Tensor, canvas: Size) -> Levels:
        """Levels `[B, C, H_l, W_l]` of pictures of sizes int64 `[B, 2]` on a canvas."""
        sizes = [(level.shape[2], level.shape[3]) for level in features]
        masks = [padding_mask(pictures, canvas, size) for size in sizes]
        shares = [
            torch.stack([(~mask[:, 0]).float().mean(dim=1), (~mask[:, :, 0]).float().mean(dim=1)], dim=1)
            for mask in masks
        ]
        return Levels(sizes, torch.cat([mask.flatten(1) for mask in masks], dim=1), torch.stack(shares, dim=1))

    def masks(self) -> list[Tensor]:
        """The padding of each level, bool `[B, H_l, W_l]`."""
        parts = torch.split(self.padding, [height * width for height, width in self.sizes], dim=1)
        return [part.reshape(-1, *size) for part, size in zip(parts, self.sizes, strict=True)]

    def blank_padding(self, values: Tensor) -> Tensor:
        """Values `[B, S, D]`, 0 in padding."""
        # On a CPU it takes less time to see that there is none; on a GPU that would wait for what it has still to do.
        if values.device.type == "cpu" and not is_traced() and not self.padding.any():
            return values
        return values.masked_fill(self.padding[..., None], 0.0)

    def centers(self) -> Tensor:
        """`[B, S, 2]`: the middles of all cells; beyond 1 in padding."""
        centers = []
        for number, (height, width) in enumerate(self.sizes):
            rows, columns = (
                (torch.arange(count, device=self.shares.device) + 0.5) / count for count in (height, width)
            )
            grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1).flatten(0, 1)
            centers.append(grid / self.shares[:, None, number])
        return torch.cat(centers, dim=1)

    def on_canvas(self, positions: Tensor) -> Tensor:
        """Positions `[B, Q, 2 or 4]` in parts of the sides of each level with its padding: `[B, Q, L, 2 or 4]`."""
        return positions[:, :, None] * self.shares.repeat(1, 1, positions.shape[-1] // 2)[:, None]


class DeformableAttention(nn.Module):
    """Attention of queries to points near their positions; which and how much follows from the query.

    project  there are linear layers before the heads and after them (else: D-FINE)
    """

    def __init__(
        self,
        width: int,
        heads: int,
        points: Sequence[int],
        sampling: Sampling = "bilinear",
        *,
        project: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.points, self.sampling = heads, tuple(points), sampling
        total = heads * sum(points)
        self.offsets, self.weights = nn.Linear(width, 2 * total), nn.Linear(width, total)
        self.value, self.out = (nn.Linear(width, width) if project else nn.Identity() for _ in range(2))
        angles = torch.arange(heads) * (2 * math.pi / heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)  # [M, 2]
        steps = torch.cat([torch.arange(count) + 1.0 for count in points])
        with torch.no_grad():
            self.offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.weights.bias)
        for projection in (self.value, self.out):
            if isinstance(projection, nn.Linear):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)
        if sampling == "discrete":
            self.offsets.requires_grad_(False)  # which cell a point lies in has no gradient

    def forward(self, query: Tensor, positions: Tensor, memory: Tensor, levels: Levels) -> Tensor:
        """`[B, Q, D]`

        query      `[B, Q, D]`
        positions  `[B, Q, L, 2 or 4]`, see `Levels.on_canvas`; with 4 the points lie farther apart in larger boxes
        memory     `[B, S, D]`
        """
        batch, queries, width = query.shape
        values = levels.blank_padding(self.value(memory)).view(batch, -1, self.heads, width // self.heads)
        offsets = self.offsets(query).view(batch, queries, self.heads, -1, 2)
        weights = self.weights(query).view(batch, queries, self.heads, -1).softmax(dim=-1)
        # ONNX has no repeat_interleave of a known size, so the level of each point is an index.
        of_points = [level for level, count in enumerate(self.points) for _ in range(count)]
        level = torch.tensor(of_points, device=query.device)
        at = positions.index_select(2, level)[:, :, None]  # [B, Q, 1, N, 2 or 4]
        if at.shape[-1] == 2:
            sides = torch.tensor([size[::-1] for size in levels.sizes], device=query.device)
            reach = 1 / sides.index_select(0, level)
        else:
            counts = torch.tensor(self.points, device=query.device)
            reach = at[..., 2:] * 0.5 / counts.index_select(0, level)[:, None]
        locations = at[..., :2] + offsets * reach
        attended = deformable_attention(values, levels.sizes, locations, weights, self.points, self.sampling)
        y: Tensor = self.out(attended)
        return y


class DeformableEncoderLayer(nn.Module):
    def __init__(self, config: DeformableTransformerConfig, levels: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(config.width, config.heads, config.points_of(levels))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config.width, config.feedforward, config.dropout, config.act)

    def forward(self, hidden: Tensor, pos_embed: Tensor, positions: Tensor, levels: Levels) -> Tensor:
        attended = self.attention(hidden + pos_embed, positions, hidden, levels)
        y: Tensor = self.feedforward(self.norm(hidden + self.dropout(attended)))
        return y


class DeformableEncoder(nn.Module):
    """Every cell of every level attends to points around it in all levels. centered: see `map_pos_embed`."""

    def __init__(
        self, config: DeformableTransformerConfig, levels: int, temperature: float, *, centered: bool = True
    ) -> None:
        super().__init__()
        self.width, self.temperature, self.centered = config.width, temperature, centered
        self.level_embed = nn.Parameter(torch.randn(levels, config.width))
        self.layers = nn.ModuleList(DeformableEncoderLayer(config, levels) for _ in range(config.encoder_layers))

    def forward(self, features: Sequence[Tensor], levels: Levels) -> Tensor:
        """Levels `[B, D, H_l, W_l]` -> memory `[B, S, D]`."""
        hidden = torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1)
        embeds = [
            map_pos_embed(mask, self.width, self.temperature, centered=self.centered).flatten(1, 2) + embed
            for mask, embed in zip(levels.masks(), self.level_embed, strict=True)
        ]
        pos_embed = torch.cat(embeds, dim=1).to(hidden.dtype)
        positions = levels.on_canvas(levels.centers())
        for layer in self.layers:
            hidden = layer(hidden, pos_embed, positions, levels)
        return hidden


class DeformableDecoderLayer(nn.Module):
    """Queries attend to each other, then to points of the memory around their positions."""

    def __init__(self, config: DeformableTransformerConfig, levels: int) -> None:
        super().__init__()
        self.self_attention = Attention(config.width, config.heads, config.dropout)
        self.self_norm = nn.LayerNorm(config.width)
        self.cross_attention = DeformableAttention(
            config.width, config.heads, config.points_of(levels), config.sampling
        )
        self.cross_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config.width, config.feedforward, config.dropout, config.act)

    def forward(
        self,
        hidden: Tensor,
        query_pos: Tensor,
        positions: Tensor,
        memory: Tensor,
        levels: Levels,
        mask: Tensor | None = None,
    ) -> Tensor:
        """
        hidden     `[B, Q, D]`
        query_pos  `[B, Q, D]`: position embedding of the queries
        positions  `[B, Q, 2 or 4]` of the queries
        memory     `[B, S, D]`
        mask       bool `[Q, Q]`, True where a query may attend to another; None: everywhere
        """
        with_pos = hidden + query_pos
        hidden = self.self_norm(hidden + self.dropout(self.self_attention(with_pos, with_pos, hidden, mask)))
        attended = self.cross_attention(hidden + query_pos, levels.on_canvas(positions), memory, levels)
        y: Tensor = self.feedforward(self.cross_norm(hidden + self.dropout(attended)))
        return y


def box_pos_embed(positions: Tensor, levels: Levels, width: int, temperature: float) -> Tensor:
    """Sines of boxes `[B, Q, 4]` in parts of the finest level with its padding, of y, x, w, h in turn: `[B, Q, D]`."""
    x, y, w, h = levels.on_canvas(positions)[:, :, 0].unbind(dim=-1)
    return sine_embedding(torch.stack([y, x, w, h], dim=-1), width, temperature)


def moved(positions: Tensor, by: Tensor, nearest_zero: float = NEAREST_ZERO) -> Tensor:
    """Boxes `[B, Q, 4]`: the logits of positions `[B, Q, 2 or 4]`, to which `by`, `[B, Q, 4]`, is added; of a point,
    which has no sides, the sides are `by` alone."""
    logits = positions.logit(nearest_zero)
    if positions.shape[-1] == 2:
        logits = torch.cat([logits, torch.zeros_like(logits)], dim=-1)
    return (logits + by).sigmoid()

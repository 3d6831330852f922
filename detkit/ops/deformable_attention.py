"""Attention to a few points of several maps (Zhu et al., arXiv 2010.04159, section 4.1).

Legend: B images, L maps, S cells of all maps together, finest map first and row by row, Q queries, M heads, P points of
a query and head in each map, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.ops.dispatch import attempt
from detkit.structures import Size

Sampling = Literal["bilinear", "discrete"]


def deformable_attention(
    values: Tensor,
    sizes: Sequence[Size],
    locations: Tensor,
    weights: Tensor,
    points: Sequence[int],
    sampling: Sampling = "bilinear",
) -> Tensor:
    """`[B, Q, M * C]`: the weighted sum of values at the points.

    values     `[B, S, M, C]`
    sizes      (h, w) of each map
    locations  `[B, Q, M, N, 2]`: x, y in parts of the maps' sides, N = sum of `points`; beyond a map there are zeros
    weights    `[B, Q, M, N]`
    points     how many of the N points lie in each map, in order
    sampling   bilinear: interpolated between the middles of cells; discrete: see `nearest_values`
    """
    if sampling == "bilinear":
        result: Tensor | None = attempt("deformable_attention", values, sizes, locations, weights, points)
        if result is not None:
            return result
    batch, _, heads, channels = values.shape
    queries = locations.shape[1]
    at = locations.transpose(1, 2).flatten(0, 1)  # [B M, Q, N, 2]
    cells = [height * width for height, width in sizes]
    maps = torch.split(values.permute(0, 2, 3, 1).flatten(0, 1), cells, dim=2)
    sample = interpolated_values if sampling == "bilinear" else nearest_values
    sampled = [
        sample(level.reshape(batch * heads, channels, *size), points_of_level)
        for level, size, points_of_level in zip(maps, sizes, torch.split(at, list(points), dim=2), strict=True)
    ]
    factors = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    attended = (torch.cat(sampled, dim=3) * factors).sum(dim=3)
    return attended.view(batch, heads * channels, queries).transpose(1, 2)


def interpolated_values(level: Tensor, locations: Tensor) -> Tensor:
    """A map `[N, C, h, w]` at locations `[N, Q, P, 2]`: `[N, C, Q, P]`."""
    return F.grid_sample(level, 2 * locations - 1, mode="bilinear", padding_mode="zeros", align_corners=False)


def nearest_values(level: Tensor, locations: Tensor) -> Tensor:
    """A map `[N, C, h, w]` at locations `[N, Q, P, 2]`: `[N, C, Q, P]`, each the value of one cell.

    As in the code of RT-DETRv2 (arXiv 2407.17140) it is the cell whose upper left corner is nearest, and beyond the map
    the one at its border. That code takes the height for the width at the border, which is the same on square maps.
    """
    height, width = level.shape[2:]
    x, y = (locations * locations.new_tensor([width, height]) + 0.5).long().unbind(dim=-1)
    cells = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    values = level.flatten(2).gather(2, cells.flatten(1)[:, None].expand(-1, level.shape[1], -1))
    return values.reshape(*values.shape[:2], *cells.shape[1:])

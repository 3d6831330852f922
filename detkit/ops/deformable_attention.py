"""Attention to a few points of several maps (Zhu et al., arXiv 2010.04159, section 4.1).

Legend: B images, L maps, S cells of all maps together, finest map first and row by row, Q queries, M heads, P points of
a query and head in each map, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.structures import Size


def deformable_attention(
    values: Tensor, sizes: Sequence[Size], locations: Tensor, weights: Tensor, points: Sequence[int]
) -> Tensor:
    """`[B, Q, M * C]`: the weighted sum of values at the points, interpolated between the middles of cells.

    values     `[B, S, M, C]`
    sizes      (h, w) of each map
    locations  `[B, Q, M, N, 2]`: x, y in parts of the maps' sides, N = sum of `points`; beyond a map there are zeros
    weights    `[B, Q, M, N]`
    points     how many of the N points lie in each map, in order
    """
    batch, _, heads, channels = values.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B M, Q, N, 2]
    cells = [height * width for height, width in sizes]
    maps = torch.split(values.permute(0, 2, 3, 1).flatten(0, 1), cells, dim=2)
    sampled = [
        F.grid_sample(
            level.reshape(batch * heads, channels, *size),
            grid,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        for level, size, grid in zip(maps, sizes, torch.split(grids, list(points), dim=2), strict=True)
    ]  # [B M, C, Q, P] each
    factors = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    attended = (torch.cat(sampled, dim=3) * factors).sum(dim=3)
    return attended.view(batch, heads * channels, queries).transpose(1, 2)

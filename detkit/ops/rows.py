"""Values of all images in one row -> a fixed number of rows an image, so that shapes do not depend on the data.

Legend: M values of all images together, B images, R rows of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ranks_in_groups(groups: Tensor, num_groups: int) -> Tensor:
    """int64 `[M]`: how many values before each one are of its group. `groups` `[M]`, integers in `[0, num_groups)`."""
    groups = groups.long()
    if isinstance(num_groups, int) and num_groups == 1:  # in an exported program the number may be a symbol
        return torch.arange(groups.shape[0], device=groups.device)
    counts = groups.new_zeros(num_groups).scatter_add(0, groups, torch.ones_like(groups))
    starts = counts.cumsum(0) - counts
    order = groups.argsort(stable=True)
    ranks = torch.arange(groups.shape[0], device=groups.device) - starts[groups[order]]
    return torch.empty_like(groups).scatter(0, order, ranks)


def to_rows(columns: Sequence[Tensor], images: Tensor, num_images: int, limit: int) -> tuple[list[Tensor], Tensor]:
    """The first `limit` values of each image, in their order; rows that no value fills are 0.

    columns  tensors `[M, ...]`, all of the same values
    images   `[M]`, integers: the image of each value
    Returns a tensor `[B, limit, ...]` for each column, and int64 `[B]`, the number of values in each image's rows.
    """
    images = images.long()
    ranks = ranks_in_groups(images, num_images)
    chosen = torch.nonzero(ranks < limit).squeeze(1)
    places = images[chosen] * limit + ranks[chosen]
    rows = [
        column.new_zeros(num_images * limit, *column.shape[1:])
        .index_copy(0, places, column[chosen])
        .view(num_images, limit, *column.shape[1:])
        for column in columns
    ]
    counts = images.new_zeros(num_images).scatter_add(0, images, torch.ones_like(images)).clamp(max=limit)
    return rows, counts

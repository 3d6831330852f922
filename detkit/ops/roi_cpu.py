"""RoIAlign and its gradient; see `roi.py`.

Bilinear interpolation is separable: the samples of a cell are so much of some rows times so much of some columns. So a
region is first reduced to its `oh` rows, then to its `ow` columns, all channels of a cell at once. The threads share
the channels, which makes the gradient the same whatever their number.

Legend: B images, C channels, H x W cells of a map, P regions, oh x ow cells of a pooled region.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkit.ops.compiled import in_threads, kernel

LEAST_CHANNELS = 32  # of a thread


class RoIAlign(torch.autograd.Function):
    """`apply(features, rois, (oh, ow), spatial_scale, sampling_ratio, aligned)` -> `[P, C, oh, ow]`.

    features  `[B, C, H, W]`, best in the memory format channels_last, float32 or float64
    rois      `[P, 5]`: image, x1, y1, x2, y2 in input pixels, of the same dtype
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        rois: Tensor,
        output_size: tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool,
    ) -> Tensor:
        cells = features.permute(0, 2, 3, 1).contiguous()  # [B, H, W, C]
        pooled = features.new_empty(len(rois), features.shape[1], *output_size)
        ctx.shape = cells.shape
        ctx.regions = _regions(rois, output_size, spatial_scale, sampling_ratio, aligned)
        work = partial(_forward, pooled.numpy(), cells.numpy(), *ctx.regions)
        in_threads(work, features.shape[1], least=LEAST_CHANNELS)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cells = gradient.new_zeros(ctx.shape)
        work = partial(_backward, gradient.contiguous().numpy(), cells.numpy(), *ctx.regions)
        in_threads(work, ctx.shape[3], least=LEAST_CHANNELS)
        return cells.permute(0, 3, 1, 2), None, None, None, None, None


def _regions(
    rois: Tensor, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[np.ndarray, ...]:
    """The image of each region `[P]`; its upper left corner, the sides of its cells and the samples in them `[P, 2]`.

    All are (y, x), in cells of the map, and rounded as torchvision's kernel rounds them.
    """
    corners = rois[:, [2, 1, 4, 3]] * spatial_scale - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    if not aligned:
        sides = sides.clamp(min=1)
    sides = sides / sides.new_tensor(output_size)
    samples = torch.full_like(sides, sampling_ratio) if sampling_ratio > 0 else sides.ceil().clamp(min=0)
    return rois[:, 0].long().numpy(), corners[:, :2].numpy(), sides.numpy(), samples.long().numpy()


@kernel
def _axis(cells: np.ndarray, count: int, extent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `_weigh` writes: weights `[o, S]` of the dtype of `cells`, spans `[o, 2]`, used `[S]`."""
    return np.empty((count, extent), cells.dtype), np.empty((count, 2), np.int64), np.empty(extent, np.bool_)


@kernel
def _weigh(weights: np.ndarray, spans: np.ndarray, used: np.ndarray, corner: float, side: float, samples: int) -> None:
    """What part of the mean of each pooled cell each cell of the map is, along one axis.

    weights  `[o, S]`, 0 but from `spans[:, 0]` to `spans[:, 1]`
    used     `[S]`, whether a cell has a weight in any mean
    """
    number = weights.dtype.type
    extent = weights.shape[1]
    weights[:] = 0
    used[:] = False
    for i in range(len(weights)):
        start, end = extent, 0
        for sample in range(samples):
            place = corner + number(i) * side + (number(sample) + number(0.5)) * side / number(samples)
            if not -1 <= place <= extent:
                continue  # it reads 0 out there
            place = min(max(place, number(0)), number(extent - 1))
            low = int(place)
            high = min(low + 1, extent - 1)
            part = place - number(low)
            weights[i, low] += (number(1) - part) / number(samples)
            weights[i, high] += part / number(samples)
            used[low] = used[high] = True
            start, end = min(start, low), max(end, high + 1)
        spans[i, 0], spans[i, 1] = min(start, end), end


@kernel
def _forward(
    pooled: np.ndarray,
    cells: np.ndarray,
    images: np.ndarray,
    corners: np.ndarray,
    sides: np.ndarray,
    samples: np.ndarray,
    start: int,
    end: int,
) -> None:
    """Channels `start` to `end` of `pooled` `[P, C, oh, ow]` from `cells` `[B, H, W, C]`."""
    pooled, cells = pooled[:, start:end], cells[:, :, :, start:end]
    _, channels, oh, ow = pooled.shape
    _, height, width, _ = cells.shape
    rows, row_spans, row_used = _axis(cells, oh, height)
    columns, column_spans, column_used = _axis(cells, ow, width)
    line, means = np.empty((width, channels), cells.dtype), np.empty((oh * ow, channels), cells.dtype)
    for p in range(len(pooled)):
        _weigh(rows, row_spans, row_used, corners[p, 0], sides[p, 0], samples[p, 0])
        _weigh(columns, column_spans, column_used, corners[p, 1], sides[p, 1], samples[p, 1])
        first, last = column_spans[:, 0].min(), column_spans[:, 1].max()
        means[:] = 0
        for i in range(oh):
            line[first:last] = 0
            for y in range(row_spans[i, 0], row_spans[i, 1]):
                if not row_used[y]:
                    continue
                weight = rows[i, y]
                for x in range(first, last):
                    if column_used[x]:
                        for c in range(channels):
                            line[x, c] += weight * cells[images[p], y, x, c]
            for j in range(ow):
                for x in range(column_spans[j, 0], column_spans[j, 1]):
                    weight = columns[j, x]
                    for c in range(channels):
                        means[i * ow + j, c] += weight * line[x, c]
        for c in range(channels):
            for i in range(oh):
                for j in range(ow):
                    pooled[p, c, i, j] = means[i * ow + j, c]


@kernel
def _backward(
    gradient: np.ndarray,
    cells: np.ndarray,
    images: np.ndarray,
    corners: np.ndarray,
    sides: np.ndarray,
    samples: np.ndarray,
    start: int,
    end: int,
) -> None:
    """Adds to channels `start` to `end` of `cells` `[B, H, W, C]` what `gradient` `[P, C, oh, ow]` means for them."""
    gradient, cells = gradient[:, start:end], cells[:, :, :, start:end]
    _, channels, oh, ow = gradient.shape
    _, height, width, _ = cells.shape
    rows, row_spans, row_used = _axis(cells, oh, height)
    columns, column_spans, column_used = _axis(cells, ow, width)
    line, means = np.empty((width, channels), cells.dtype), np.empty((oh * ow, channels), cells.dtype)
    for p in range(len(gradient)):
        _weigh(rows, row_spans, row_used, corners[p, 0], sides[p, 0], samples[p, 0])
        _weigh(columns, column_spans, column_used, corners[p, 1], sides[p, 1], samples[p, 1])
        first, last = column_spans[:, 0].min(), column_spans[:, 1].max()
        for c in range(channels):
            for i in range(oh):
                for j in range(ow):
                    means[i * ow + j, c] = gradient[p, c, i, j]
        for i in range(oh):
            line[first:last] = 0
            for j in range(ow):
                for x in range(column_spans[j, 0], column_spans[j, 1]):
                    weight = columns[j, x]
                    for c in range(channels):
                        line[x, c] += weight * means[i * ow + j, c]
            for y in range(row_spans[i, 0], row_spans[i, 1]):
                if not row_used[y]:
                    continue
                weight = rows[i, y]
                for x in range(first, last):
                    if column_used[x]:
                        for c in range(channels):
                            cells[images[p], y, x, c] += weight * line[x, c]

"""The kernels of RoIAlign and its gradient; see `ops/roi.py`.

Bilinear interpolation is separable: the mean of the samples of a pooled cell is a weighted sum over columns of the map,
of weighted sums over its rows. So each region is first reduced to `oh` rows, then these to `ow` columns, all channels
of a cell at once. Each thread has channels of its own, so that the gradient does not depend on the number of threads.

Legend: B images, C channels, H x W cells of a map, P regions, oh x ow cells of a pooled region.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkit.accelerate.compiled import compiled, run, threaded

MIN_CHANNELS = 32  # of one thread


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """`[P, C, oh, ow]`; arguments as those of torchvision's.

    features  `[B, C, H, W]`, best in the memory format channels_last, float32 or float64
    rois      `[P, 5]`: image, x1, y1, x2, y2 in input pixels, of the same dtype
    """
    pooled: Tensor = _RoIAlign.apply(features, rois, output_size, spatial_scale, sampling_ratio, aligned)
    return pooled


class _RoIAlign(torch.autograd.Function):
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
        features, rois = features.detach(), rois.detach()
        cells = features.permute(0, 2, 3, 1).contiguous()  # [B, H, W, C]
        pooled = features.new_empty(len(rois), features.shape[1], *output_size)
        ctx.shape = cells.shape
        ctx.regions = _regions(rois, output_size, spatial_scale, sampling_ratio, aligned)
        arguments = (pooled.numpy(), cells.numpy(), *ctx.regions)
        run(_forward, _forward_in_parts, arguments, features.shape[1], min_part=MIN_CHANNELS)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_pooled: Tensor) -> tuple[Tensor | None, ...]:
        grad_cells = grad_pooled.new_zeros(ctx.shape)
        arguments = (grad_pooled.contiguous().numpy(), grad_cells.numpy(), *ctx.regions)
        run(_backward, _backward_in_parts, arguments, ctx.shape[3], min_part=MIN_CHANNELS)
        return grad_cells.permute(0, 3, 1, 2), None, None, None, None, None


def _regions(
    rois: Tensor, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple[np.ndarray, ...]:
    """The image of each region `[P]`, its upper left corner, the sides of its pooled cells and their samples `[P, 2]`.

    Pairs are (y, x); corners and sides are in cells of the map. All are rounded as in torchvision's kernel.
    """
    corners = rois[:, [2, 1, 4, 3]] * spatial_scale - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    if not aligned:
        sides = sides.clamp(min=1)
    sides = sides / sides.new_tensor(output_size)
    samples = torch.full_like(sides, sampling_ratio) if sampling_ratio > 0 else sides.ceil().clamp(min=0)
    return rois[:, 0].long().numpy(), corners[:, :2].numpy(), sides.numpy(), samples.long().numpy()


@compiled
def _axis(cells: np.ndarray, count: int, extent: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Empty arrays for `_weigh` along an axis of `extent` cells: weights `[o, S]`, spans `[o, 2]`, used `[S]`."""
    return np.empty((count, extent), cells.dtype), np.empty((count, 2), np.int64), np.empty(extent, np.bool_)


@compiled
def _weigh(weights: np.ndarray, spans: np.ndarray, used: np.ndarray, corner: float, side: float, samples: int) -> None:
    """Writes the weight of each of S cells of the map in the mean of each of o pooled cells, along one axis.

    weights  `[o, S]`: 0 outside of `spans[:, 0]` to `spans[:, 1]`
    spans    `[o, 2]`: first cell and one past the last
    used     `[S]`: whether a cell has a weight in any mean
    corner   start of the region, `side` the length of a pooled cell, in cells of the map; `samples` in a pooled cell
    """
    number = weights.dtype.type
    extent = weights.shape[1]
    weights[:] = 0
    used[:] = False
    for i in range(len(weights)):
        start, end = extent, 0
        for sample in range(samples):
            location = corner + number(i) * side + (number(sample) + number(0.5)) * side / number(samples)
            if not -1 <= location <= extent:
                continue  # samples out there are 0
            location = min(max(location, number(0)), number(extent - 1))
            low = int(location)
            high = min(low + 1, extent - 1)
            part = location - number(low)
            weights[i, low] += (number(1) - part) / number(samples)
            weights[i, high] += part / number(samples)
            used[low] = used[high] = True
            start, end = min(start, low), max(end, high + 1)
        spans[i, 0], spans[i, 1] = min(start, end), end


@compiled
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
    """Writes channels `start` to `end` of `pooled` `[P, C, oh, ow]` from `cells` `[B, H, W, C]`."""
    pooled, cells = pooled[:, start:end], cells[:, :, :, start:end]
    _, channels, oh, ow = pooled.shape
    _, height, width, _ = cells.shape
    rows, row_spans, row_used = _axis(cells, oh, height)
    columns, column_spans, column_used = _axis(cells, ow, width)
    row_sums, means = np.empty((width, channels), cells.dtype), np.empty((oh * ow, channels), cells.dtype)
    for p in range(len(pooled)):
        _weigh(rows, row_spans, row_used, corners[p, 0], sides[p, 0], samples[p, 0])
        _weigh(columns, column_spans, column_used, corners[p, 1], sides[p, 1], samples[p, 1])
        first, last = column_spans[:, 0].min(), column_spans[:, 1].max()
        means[:] = 0
        for i in range(oh):
            row_sums[first:last] = 0
            for y in range(row_spans[i, 0], row_spans[i, 1]):
                if not row_used[y]:
                    continue
                weight = rows[i, y]
                for x in range(first, last):
                    if column_used[x]:
                        for c in range(channels):
                            row_sums[x, c] += weight * cells[images[p], y, x, c]
            for j in range(ow):
                for x in range(column_spans[j, 0], column_spans[j, 1]):
                    weight = columns[j, x]
                    for c in range(channels):
                        means[i * ow + j, c] += weight * row_sums[x, c]
        for c in range(channels):
            for i in range(oh):
                for j in range(ow):
                    pooled[p, c, i, j] = means[i * ow + j, c]


@compiled
def _backward(
    grad_pooled: np.ndarray,
    grad_cells: np.ndarray,
    images: np.ndarray,
    corners: np.ndarray,
    sides: np.ndarray,
    samples: np.ndarray,
    start: int,
    end: int,
) -> None:
    """Adds to channels `start` to `end` of `grad_cells` `[B, H, W, C]` their gradient.

    grad_pooled  `[P, C, oh, ow]`: the gradient of the pooled cells
    """
    grad_pooled, grad_cells = grad_pooled[:, start:end], grad_cells[:, :, :, start:end]
    _, channels, oh, ow = grad_pooled.shape
    _, height, width, _ = grad_cells.shape
    rows, row_spans, row_used = _axis(grad_cells, oh, height)
    columns, column_spans, column_used = _axis(grad_cells, ow, width)
    row_sums, means = np.empty((width, channels), grad_cells.dtype), np.empty((oh * ow, channels), grad_cells.dtype)
    for p in range(len(grad_pooled)):
        _weigh(rows, row_spans, row_used, corners[p, 0], sides[p, 0], samples[p, 0])
        _weigh(columns, column_spans, column_used, corners[p, 1], sides[p, 1], samples[p, 1])
        first, last = column_spans[:, 0].min(), column_spans[:, 1].max()
        for c in range(channels):
            for i in range(oh):
                for j in range(ow):
                    means[i * ow + j, c] = grad_pooled[p, c, i, j]
        for i in range(oh):
            row_sums[first:last] = 0
            for j in range(ow):
                for x in range(column_spans[j, 0], column_spans[j, 1]):
                    weight = columns[j, x]
                    for c in range(channels):
                        row_sums[x, c] += weight * means[i * ow + j, c]
            for y in range(row_spans[i, 0], row_spans[i, 1]):
                if not row_used[y]:
                    continue
                weight = rows[i, y]
                for x in range(first, last):
                    if column_used[x]:
                        for c in range(channels):
                            grad_cells[images[p], y, x, c] += weight * row_sums[x, c]


@threaded
def _forward_in_parts(
    pooled: np.ndarray,
    cells: np.ndarray,
    images: np.ndarray,
    corners: np.ndarray,
    sides: np.ndarray,
    samples: np.ndarray,
    total: int,
    parts: int,
) -> None:
    for part in prange(parts):
        start, end = part * total // parts, (part + 1) * total // parts
        _forward(pooled, cells, images, corners, sides, samples, start, end)


@threaded
def _backward_in_parts(
    grad_pooled: np.ndarray,
    grad_cells: np.ndarray,
    images: np.ndarray,
    corners: np.ndarray,
    sides: np.ndarray,
    samples: np.ndarray,
    total: int,
    parts: int,
) -> None:
    for part in prange(parts):
        start, end = part * total // parts, (part + 1) * total // parts
        _backward(grad_pooled, grad_cells, images, corners, sides, samples, start, end)

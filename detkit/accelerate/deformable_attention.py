"""The kernels of deformable attention and its gradient; see `ops/deformable_attention.py`.

Each thread has images and heads of its own, so that the gradient does not depend on the number of threads.

Legend: B images, S cells of all maps together, Q queries, M heads, N points of a query and head, C channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkit.accelerate.compiled import compiled, run, threaded


def deformable_attention(
    values: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor, points: Sequence[int]
) -> Tensor | None:
    """`[B, Q, M * C]`; arguments as those of the op, all of one dtype. None: not float32 or float64."""
    if values.dtype not in (torch.float32, torch.float64) or not values.dtype == locations.dtype == weights.dtype:
        return None
    starts = np.cumsum([0, *(height * width for height, width in sizes)])
    maps = [(start, *size) for start, size, count in zip(starts, sizes, points, strict=False) for _ in range(count)]
    attended: Tensor = _DeformableAttention.apply(values, locations, weights, np.array(maps, np.int64))
    return attended


class _DeformableAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, locations: Tensor, weights: Tensor, maps: np.ndarray) -> Tensor:
        tensors = [tensor.contiguous() for tensor in (values, locations, weights)]
        ctx.save_for_backward(*tensors)
        ctx.maps = maps
        batch, queries, heads = weights.shape[:3]
        attended = values.new_empty(batch, queries, heads, values.shape[3])
        arrays = [tensor.detach().numpy() for tensor in (attended, *tensors)]
        run(_forward, _forward_in_parts, (*arrays, maps), batch * heads)
        return attended.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_attended: Tensor) -> tuple[Tensor | None, ...]:
        values, locations, weights = ctx.saved_tensors
        gradients = [torch.zeros_like(values), torch.empty_like(locations), torch.empty_like(weights)]
        grad_attended = grad_attended.contiguous().view(*weights.shape[:3], -1)
        arrays = [tensor.detach().numpy() for tensor in (*gradients, grad_attended, values, locations, weights)]
        run(_backward, _backward_in_parts, (*arrays, ctx.maps), weights.shape[0] * weights.shape[2])
        return (*gradients, None)


@compiled
def _forward(
    attended: np.ndarray,
    values: np.ndarray,
    locations: np.ndarray,
    weights: np.ndarray,
    maps: np.ndarray,
    start: int,
    end: int,
) -> None:
    """Writes `attended` `[B, Q, M, C]` of the images and heads `start` to `end`, counted head by head.

    maps  `[N, 3]`: the first cell, the height and the width of the map of each point
    """
    number = values.dtype.type
    _, queries, heads, channels = attended.shape
    for pair in range(start, end):
        image, head = pair // heads, pair % heads
        for query in range(queries):
            total = attended[image, query, head]
            total[:] = 0
            for point in range(len(maps)):
                first, height, width = maps[point]
                x = locations[image, query, head, point, 0] * number(width) - number(0.5)
                y = locations[image, query, head, point, 1] * number(height) - number(0.5)
                weight = weights[image, query, head, point]
                if not (x > -1 and x < width and y > -1 and y < height):
                    for c in range(channels):  # 0, but for what is not finite
                        total[c] += weight * ((x - x) + (y - y))
                    continue
                left, top = math.floor(x), math.floor(y)
                for row in range(max(top, 0), min(top + 2, height)):
                    share = weight * (number(1) - abs(y - number(row)))
                    for column in range(max(left, 0), min(left + 2, width)):
                        factor = share * (number(1) - abs(x - number(column)))
                        value = values[image, first + row * width + column, head]
                        for c in range(channels):
                            total[c] += factor * value[c]


@partial(compiled, fastmath={"reassoc"})
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    total = a.dtype.type(0)
    for c in range(len(a)):
        total += a[c] * b[c]
    return total  # type: ignore[no-any-return]


@compiled
def _backward(
    grad_values: np.ndarray,
    grad_locations: np.ndarray,
    grad_weights: np.ndarray,
    grad_attended: np.ndarray,
    values: np.ndarray,
    locations: np.ndarray,
    weights: np.ndarray,
    maps: np.ndarray,
    start: int,
    end: int,
) -> None:
    """Writes the gradients of the images and heads `start` to `end`; `grad_values` is 0 before.

    grad_attended  `[B, Q, M, C]`: the gradient of the result
    """
    number = values.dtype.type
    _, queries, heads, channels = grad_attended.shape
    for pair in range(start, end):
        image, head = pair // heads, pair % heads
        for query in range(queries):
            slope = grad_attended[image, query, head]
            for point in range(len(maps)):
                first, height, width = maps[point]
                x = locations[image, query, head, point, 0] * number(width) - number(0.5)
                y = locations[image, query, head, point, 1] * number(height) - number(0.5)
                weight = weights[image, query, head, point]
                sampled = along_x = along_y = number(0)
                if x > -1 and x < width and y > -1 and y < height:
                    left, top = math.floor(x), math.floor(y)
                    for row in range(max(top, 0), min(top + 2, height)):
                        share, rises = number(1) - abs(y - number(row)), number(1 if row > top else -1)
                        for column in range(max(left, 0), min(left + 2, width)):
                            part, grows = number(1) - abs(x - number(column)), number(1 if column > left else -1)
                            cell = first + row * width + column
                            product = _dot(slope, values[image, cell, head])
                            sampled += share * part * product
                            along_x += share * grows * product
                            along_y += rises * part * product
                            factor, grad_value = weight * share * part, grad_values[image, cell, head]
                            for c in range(channels):
                                grad_value[c] += factor * slope[c]
                grad_weights[image, query, head, point] = sampled
                grad_locations[image, query, head, point, 0] = weight * along_x * number(width)
                grad_locations[image, query, head, point, 1] = weight * along_y * number(height)


@threaded
def _forward_in_parts(
    attended: np.ndarray,
    values: np.ndarray,
    locations: np.ndarray,
    weights: np.ndarray,
    maps: np.ndarray,
    total: int,
    parts: int,
) -> None:
    for part in prange(parts):
        start, end = part * total // parts, (part + 1) * total // parts
        _forward(attended, values, locations, weights, maps, start, end)


@threaded
def _backward_in_parts(
    grad_values: np.ndarray,
    grad_locations: np.ndarray,
    grad_weights: np.ndarray,
    grad_attended: np.ndarray,
    values: np.ndarray,
    locations: np.ndarray,
    weights: np.ndarray,
    maps: np.ndarray,
    total: int,
    parts: int,
) -> None:
    for part in prange(parts):
        start, end = part * total // parts, (part + 1) * total // parts
        _backward(
            grad_values, grad_locations, grad_weights, grad_attended, values, locations, weights, maps, start, end
        )

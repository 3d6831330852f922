"""Convolution 3 x 3, stride 1, padding 1, and its gradients, by Winograd's F(2 x 2, 3 x 3); arXiv 1509.09308.

A tile of 4 x 4 inputs gives 2 x 2 outputs with 16 multiplications a channel instead of 36:

    y = A^T [sum over c of (G g G^T) * (B^T d B)] A

So each of the 16 positions of a tile has a matrix product of its own, tiles x C times C x K. A block of tiles goes
through all steps while it is in the cache. The sums are shorter than those of a direct convolution, and so the rounding
error of float32 is smaller.

Legend: B images of H x W pixels, C channels in, K out, T tiles of a block. In memory: tiles `[16, C / 8, T, 8]`,
products `[16, K / 16, T, 16]`, transformed weights `[16, K / 16, C, 16]`. A gap follows each of the 16 positions:
without it they would lie a power of two apart, and their addresses would compete for the same lines of the cache.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkit.ops.compiled import in_threads, kernel
from detkit.ops.vectors import load, multiply_add, splat, store, zero

PANEL = 16  # channels; K and C must be multiples of it
GAP = 16  # float32 after each position
ROWS = 6  # tiles that `_multiply` takes at once
BLOCK = 96  # tiles; more would not fit into the cache, with fewer the weights are read more often
MIN_TILES = 32  # of one thread
HALF = np.float32(0.5)


class Convolution3x3(torch.autograd.Function):
    """`apply(x, weight, bias)` -> `[B, K, H, W]`, as `conv2d` with padding 1; all float32.

    x       `[B, C, H, W]` in the memory format channels_last
    weight  `[K, C, 3, 3]`
    bias    `[K]` or None
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight.detach().numpy(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_output = grad_output.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _convolve(grad_output, weight.detach().numpy()[:, :, ::-1, ::-1].transpose(1, 0, 2, 3), None)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, grad_output)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum(dim=(0, 2, 3))
        return grad_x, grad_weight, grad_bias


def _convolve(x: Tensor, weight: np.ndarray, bias: Tensor | None) -> Tensor:
    images, channels, height, width = x.shape
    transformed = np.empty(16 * (len(weight) * channels + GAP), np.float32)
    in_threads(partial(_transform_weight, weight, transformed), len(weight) // PANEL)
    y = torch.empty((images, len(weight), height, width), memory_format=torch.channels_last)
    bias = y.new_zeros(len(weight)) if bias is None else bias
    work = partial(_convolve_tiles, _pixels(x), transformed, bias.detach().numpy(), _pixels(y))
    in_threads(work, _count_tiles(x), min_part=MIN_TILES)
    return y


def _weight_gradient(x: Tensor, grad_output: Tensor) -> Tensor:
    outputs, channels = grad_output.shape[1], x.shape[1]
    sums: dict[int, np.ndarray] = {}  # of each part, by its first tile

    def work(start: int, end: int) -> None:
        sums[start] = np.zeros(16 * (outputs * channels + GAP), np.float32)
        _correlate_tiles(_pixels(x), _pixels(grad_output), sums[start], start, end)

    in_threads(work, _count_tiles(x), min_part=MIN_TILES)
    total = np.add.reduce([sums[start] for start in sorted(sums)])
    grad_weight = np.empty((outputs, 3, 3, channels), np.float32)
    in_threads(partial(_transform_back, total, grad_weight), outputs // PANEL)
    return torch.from_numpy(grad_weight).permute(0, 3, 1, 2)


def _pixels(x: Tensor) -> np.ndarray:
    """`[B, H, W, C]`, the same memory as `x` in the memory format channels_last."""
    return x.detach().permute(0, 2, 3, 1).numpy()


def _count_tiles(x: Tensor) -> int:
    return len(x) * -(-x.shape[2] // 2) * -(-x.shape[3] // 2)


@kernel
def _transform_weight(weight: np.ndarray, into: np.ndarray, start: int, end: int) -> None:
    """Writes G g G^T of the panels `start` to `end`."""
    outputs, channels = weight.shape[:2]
    step = outputs * channels + GAP
    for panel in range(start, end):
        for first in range(0, channels, PANEL):  # a piece that fits into the cache
            for k in range(PANEL):
                for c in range(first, first + PANEL):
                    k_ = panel * PANEL + k
                    left = _expand(weight[k_, c, 0, 0], weight[k_, c, 1, 0], weight[k_, c, 2, 0])
                    middle = _expand(weight[k_, c, 0, 1], weight[k_, c, 1, 1], weight[k_, c, 2, 1])
                    right = _expand(weight[k_, c, 0, 2], weight[k_, c, 1, 2], weight[k_, c, 2, 2])
                    at = (panel * channels + c) * PANEL + k
                    _write_numbers(into, at, step, _expand(left[0], middle[0], right[0]))
                    _write_numbers(into, at + 4 * step, step, _expand(left[1], middle[1], right[1]))
                    _write_numbers(into, at + 8 * step, step, _expand(left[2], middle[2], right[2]))
                    _write_numbers(into, at + 12 * step, step, _expand(left[3], middle[3], right[3]))


@kernel
def _transform_back(sums: np.ndarray, into: np.ndarray, start: int, end: int) -> None:
    """Writes G^T u G of the panels `start` to `end` into `[K, 3, 3, C]`."""
    outputs, _, _, channels = into.shape
    step = outputs * channels + GAP
    for panel in range(start, end):
        for first in range(0, channels, PANEL):
            for k in range(PANEL):
                for c in range(first, first + PANEL):
                    at = (panel * channels + c) * PANEL + k
                    a = _reduce_row(sums, at, step)
                    b = _reduce_row(sums, at + 4 * step, step)
                    c_ = _reduce_row(sums, at + 8 * step, step)
                    d = _reduce_row(sums, at + 12 * step, step)
                    k_ = panel * PANEL + k
                    into[k_, 0, 0, c], into[k_, 1, 0, c], into[k_, 2, 0, c] = _reduce(a[0], b[0], c_[0], d[0])
                    into[k_, 0, 1, c], into[k_, 1, 1, c], into[k_, 2, 1, c] = _reduce(a[1], b[1], c_[1], d[1])
                    into[k_, 0, 2, c], into[k_, 1, 2, c], into[k_, 2, 2, c] = _reduce(a[2], b[2], c_[2], d[2])


@kernel
def _write_numbers(into: np.ndarray, at: int, step: int, row: Any) -> None:
    """Writes four positions."""
    into[at] = row[0]
    into[at + step] = row[1]
    into[at + 2 * step] = row[2]
    into[at + 3 * step] = row[3]


@kernel
def _reduce_row(sums: np.ndarray, at: int, step: int) -> Any:
    return _reduce(sums[at], sums[at + step], sums[at + 2 * step], sums[at + 3 * step])


@kernel
def _expand(a: Any, b: Any, c: Any) -> Any:
    """G times a column."""
    return a, HALF * (a + b + c), HALF * (a - b + c), c


@kernel
def _reduce(a: Any, b: Any, c: Any, d: Any) -> Any:
    """G^T times a column."""
    return a + HALF * (b + c), HALF * (b - c), HALF * (b + c) + d


@kernel
def _spread(a: Any, b: Any, c: Any, d: Any) -> Any:
    """B^T times a column."""
    return a - c, b + c, c - b, d - b


@kernel
def _gather(a: Any, b: Any, c: Any, d: Any) -> Any:
    """A^T times a column."""
    return a + b + c, b - c + d


@kernel
def _lift(a: Any, b: Any) -> Any:
    """A times a column."""
    return a, a + b, a - b, b


@kernel
def _convolve_tiles(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, start: int, end: int) -> None:
    """Writes the outputs y `[B, H, W, K]` of the tiles `start` to `end`, which are counted over all images."""
    channels, outputs = x.shape[3], y.shape[3]
    block = min(BLOCK, (end - start + ROWS - 1) // ROWS * ROWS)
    tiles = np.empty(16 * (channels * block + GAP), np.float32)
    products = np.empty(16 * (outputs * block + GAP), np.float32)
    for first in range(start, end, block):
        count = min(block, end - first)
        _read_inputs(x, first, count, block, tiles)
        for position in range(16):
            _multiply(tiles, weight, products, position, count, block, channels, outputs)
        _write_outputs(products, bias, y, first, count, block)


@kernel
def _correlate_tiles(x: np.ndarray, gradient: np.ndarray, sums: np.ndarray, start: int, end: int) -> None:
    """Adds the gradient of the transformed weights of the tiles `start` to `end`."""
    channels, outputs = x.shape[3], gradient.shape[3]
    block = min(BLOCK, (end - start + ROWS - 1) // ROWS * ROWS)
    tiles = np.empty(16 * (channels * block + GAP), np.float32)
    lifted = np.empty(16 * (outputs * block + GAP), np.float32)
    for first in range(start, end, block):
        count = min(block, end - first)
        _read_inputs(x, first, count, block, tiles)
        _read_gradients(gradient, first, count, block, lifted)
        for position in range(16):
            _accumulate(tiles, lifted, sums, position, count, block, channels, outputs)


@kernel
def _read_inputs(x: np.ndarray, first: int, count: int, block: int, tiles: np.ndarray) -> None:
    """Writes B^T d B of `count` tiles, the first of which is `first`, into `tiles`."""
    _, height, width, channels = x.shape
    tile_rows, tile_columns = (height + 1) // 2, (width + 1) // 2
    pixels = x.reshape(-1)
    bordered = np.empty(16 * channels, np.float32)
    for tile in range(count):
        image, location = divmod(first + tile, tile_rows * tile_columns)
        top, left = 2 * (location // tile_columns) - 1, 2 * (location % tile_columns) - 1
        if top >= 0 and left >= 0 and top + 4 <= height and left + 4 <= width:
            corner = ((image * height + top) * width + left) * channels
            _read_input(pixels, corner, width * channels, channels, tile, block, tiles)
        else:
            bordered[:] = 0
            for row in range(max(0, -top), min(4, height - top)):
                for column in range(max(0, -left), min(4, width - left)):
                    corner = (4 * row + column) * channels
                    bordered[corner : corner + channels] = x[image, top + row, left + column]
            _read_input(bordered, 0, 4 * channels, channels, tile, block, tiles)


@kernel
def _read_input(
    pixels: np.ndarray, corner: int, row: int, channels: int, tile: int, block: int, tiles: np.ndarray
) -> None:
    step = channels * block + GAP
    for c in range(0, channels, 8):
        a = _read_column(pixels, corner + c, row)
        b = _read_column(pixels, corner + c + channels, row)
        c_ = _read_column(pixels, corner + c + 2 * channels, row)
        d = _read_column(pixels, corner + c + 3 * channels, row)
        at = c * block + tile * 8
        _write_row(tiles, at, step, _spread(a[0], b[0], c_[0], d[0]))
        _write_row(tiles, at + 4 * step, step, _spread(a[1], b[1], c_[1], d[1]))
        _write_row(tiles, at + 8 * step, step, _spread(a[2], b[2], c_[2], d[2]))
        _write_row(tiles, at + 12 * step, step, _spread(a[3], b[3], c_[3], d[3]))


@kernel
def _read_column(pixels: np.ndarray, at: int, row: int) -> Any:
    return _spread(load(pixels, at), load(pixels, at + row), load(pixels, at + 2 * row), load(pixels, at + 3 * row))


@kernel
def _write_row(into: np.ndarray, at: int, step: int, row: Any) -> None:
    """Writes four positions."""
    store(into, at, row[0])
    store(into, at + step, row[1])
    store(into, at + 2 * step, row[2])
    store(into, at + 3 * step, row[3])


@kernel
def _read_gradients(gradient: np.ndarray, first: int, count: int, block: int, lifted: np.ndarray) -> None:
    """Writes A dy A^T of `count` tiles, the first of which is `first`, into `lifted`."""
    _, height, width, outputs = gradient.shape
    tile_rows, tile_columns = (height + 1) // 2, (width + 1) // 2
    pixels = gradient.reshape(-1)
    step = outputs * block + GAP
    for tile in range(count):
        image, location = divmod(first + tile, tile_rows * tile_columns)
        top, left = 2 * (location // tile_columns), 2 * (location % tile_columns)
        corner = ((image * height + top) * width + left) * outputs
        below, right = top + 1 < height, left + 1 < width
        for k in range(0, outputs, 8):
            at = corner + k
            a = load(pixels, at)
            b = load(pixels, at + outputs) if right else zero()
            c = load(pixels, at + width * outputs) if below else zero()
            d = load(pixels, at + (width + 1) * outputs) if below and right else zero()
            a_, b_ = _lift(a, c), _lift(b, d)
            at = ((k // PANEL) * block + tile) * PANEL + k % PANEL
            _write_row(lifted, at, step, _lift(a_[0], b_[0]))
            _write_row(lifted, at + 4 * step, step, _lift(a_[1], b_[1]))
            _write_row(lifted, at + 8 * step, step, _lift(a_[2], b_[2]))
            _write_row(lifted, at + 12 * step, step, _lift(a_[3], b_[3]))


@kernel
def _write_outputs(products: np.ndarray, bias: np.ndarray, y: np.ndarray, first: int, count: int, block: int) -> None:
    """Writes A^T m A + bias of `count` tiles, the first of which is `first`, into `y` `[B, H, W, K]`."""
    _, height, width, outputs = y.shape
    tile_rows, tile_columns = (height + 1) // 2, (width + 1) // 2
    pixels = y.reshape(-1)
    step = outputs * block + GAP
    for tile in range(count):
        image, location = divmod(first + tile, tile_rows * tile_columns)
        top, left = 2 * (location // tile_columns), 2 * (location % tile_columns)
        corner = ((image * height + top) * width + left) * outputs
        below, right = top + 1 < height, left + 1 < width
        for k in range(0, outputs, 8):
            at = ((k // PANEL) * block + tile) * PANEL + k % PANEL
            a = _gather_row(products, at, step)
            b = _gather_row(products, at + 4 * step, step)
            c = _gather_row(products, at + 8 * step, step)
            d = _gather_row(products, at + 12 * step, step)
            shift = load(bias, k)
            upper, lower = _gather(a[0], b[0], c[0], d[0])
            at = corner + k
            store(pixels, at, upper + shift)
            if below:
                store(pixels, at + width * outputs, lower + shift)
            if right:
                upper, lower = _gather(a[1], b[1], c[1], d[1])
                store(pixels, at + outputs, upper + shift)
                if below:
                    store(pixels, at + (width + 1) * outputs, lower + shift)


@kernel
def _gather_row(products: np.ndarray, at: int, step: int) -> Any:
    return _gather(
        load(products, at), load(products, at + step), load(products, at + 2 * step), load(products, at + 3 * step)
    )


@kernel
def _multiply(
    tiles: np.ndarray,
    weight: np.ndarray,
    products: np.ndarray,
    position: int,
    count: int,
    block: int,
    channels: int,
    outputs: int,
) -> None:
    """Writes products `[T, K]` = tiles `[T, C]` weight `[C, K]` of a position, six tiles and sixteen outputs at a time.

    Their sums are in registers: a to f are the six tiles, 0 and 1 the two halves of the sixteen outputs.
    """
    tiles_start = position * (channels * block + GAP)
    weight_start = position * (outputs * channels + GAP)
    products_start = position * (outputs * block + GAP)
    for panel in range(outputs // PANEL):
        for tile in range(0, count, ROWS):
            a0, b0, c0, d0, e0, f0 = zero(), zero(), zero(), zero(), zero(), zero()
            a1, b1, c1, d1, e1, f1 = zero(), zero(), zero(), zero(), zero(), zero()
            w = weight_start + panel * channels * PANEL
            for group in range(channels // 8):
                t = tiles_start + (group * block + tile) * 8
                for t_ in range(t, t + 8):
                    w0, w1 = load(weight, w), load(weight, w + 8)
                    a, b, c = splat(tiles, t_), splat(tiles, t_ + 8), splat(tiles, t_ + 16)
                    a0, a1 = multiply_add(a, w0, a0), multiply_add(a, w1, a1)
                    b0, b1 = multiply_add(b, w0, b0), multiply_add(b, w1, b1)
                    c0, c1 = multiply_add(c, w0, c0), multiply_add(c, w1, c1)
                    d, e, f = splat(tiles, t_ + 24), splat(tiles, t_ + 32), splat(tiles, t_ + 40)
                    d0, d1 = multiply_add(d, w0, d0), multiply_add(d, w1, d1)
                    e0, e1 = multiply_add(e, w0, e0), multiply_add(e, w1, e1)
                    f0, f1 = multiply_add(f, w0, f0), multiply_add(f, w1, f1)
                    w += PANEL
            at = products_start + (panel * block + tile) * PANEL
            _write_pair(products, at, a0, a1)
            _write_pair(products, at + PANEL, b0, b1)
            _write_pair(products, at + 2 * PANEL, c0, c1)
            _write_pair(products, at + 3 * PANEL, d0, d1)
            _write_pair(products, at + 4 * PANEL, e0, e1)
            _write_pair(products, at + 5 * PANEL, f0, f1)


@kernel
def _accumulate(
    tiles: np.ndarray,
    lifted: np.ndarray,
    sums: np.ndarray,
    position: int,
    count: int,
    block: int,
    channels: int,
    outputs: int,
) -> None:
    """Adds tiles^T `[C, T]` lifted `[T, K]` to the sums `[C, K]` of a position, four inputs, sixteen outputs at a time.

    These are in registers: a to d are the four inputs, 0 and 1 the two halves of the sixteen outputs.
    """
    tiles_start = position * (channels * block + GAP)
    lifted_start = position * (outputs * block + GAP)
    sums_start = position * (outputs * channels + GAP)
    for panel in range(outputs // PANEL):
        for channel in range(0, channels, 4):
            at = sums_start + (panel * channels + channel) * PANEL
            a0, a1 = load(sums, at), load(sums, at + 8)
            b0, b1 = load(sums, at + PANEL), load(sums, at + PANEL + 8)
            c0, c1 = load(sums, at + 2 * PANEL), load(sums, at + 2 * PANEL + 8)
            d0, d1 = load(sums, at + 3 * PANEL), load(sums, at + 3 * PANEL + 8)
            t = tiles_start + channel // 8 * block * 8 + channel % 8
            g = lifted_start + panel * block * PANEL
            for _ in range(count):
                g0, g1 = load(lifted, g), load(lifted, g + 8)
                a, b, c, d = splat(tiles, t), splat(tiles, t + 1), splat(tiles, t + 2), splat(tiles, t + 3)
                a0, a1 = multiply_add(a, g0, a0), multiply_add(a, g1, a1)
                b0, b1 = multiply_add(b, g0, b0), multiply_add(b, g1, b1)
                c0, c1 = multiply_add(c, g0, c0), multiply_add(c, g1, c1)
                d0, d1 = multiply_add(d, g0, d0), multiply_add(d, g1, d1)
                t += 8
                g += PANEL
            _write_pair(sums, at, a0, a1)
            _write_pair(sums, at + PANEL, b0, b1)
            _write_pair(sums, at + 2 * PANEL, c0, c1)
            _write_pair(sums, at + 3 * PANEL, d0, d1)


@kernel
def _write_pair(into: np.ndarray, at: int, first: Any, second: Any) -> None:
    store(into, at, first)
    store(into, at + 8, second)

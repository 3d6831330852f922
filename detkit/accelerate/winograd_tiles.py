"""Tiles of images, weights and gradients to and from the form in which they are multiplied; see `winograd.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from detkit.accelerate.compiled import compiled
from detkit.accelerate.vectors import LANES, load, splat, store, zero

PANEL = 16  # channels; K and C must be multiples of it
GAP = 16  # float32 after each position
HALF = np.full(1, 0.5, np.float32)


@compiled
def transform_weight(weight: np.ndarray, into: np.ndarray, start: int, end: int) -> None:
    """Writes G g G^T of the panels `start` to `end`."""
    outputs, channels = weight.shape[:2]
    step = outputs * channels + GAP
    piece = np.empty(9 * PANEL * PANEL, np.float32)  # `[3, 3, C, K]`, in the cache
    half = splat(HALF, 0)
    for panel in range(start, end):
        for first in range(0, channels, PANEL):
            _read_piece(weight, panel * PANEL, first, piece)
            for c in range(PANEL):
                for k in range(0, PANEL, LANES):
                    at = c * PANEL + k
                    left = _expand_column(piece, at, half)
                    middle = _expand_column(piece, at + PANEL * PANEL, half)
                    right = _expand_column(piece, at + 2 * PANEL * PANEL, half)
                    at = (panel * channels + first + c) * PANEL + k
                    _write_row(into, at, step, _expand(left[0], middle[0], right[0], half))
                    _write_row(into, at + 4 * step, step, _expand(left[1], middle[1], right[1], half))
                    _write_row(into, at + 8 * step, step, _expand(left[2], middle[2], right[2], half))
                    _write_row(into, at + 12 * step, step, _expand(left[3], middle[3], right[3], half))


@compiled
def _read_piece(weight: np.ndarray, output: int, channel: int, piece: np.ndarray) -> None:
    """Copies the weights of the outputs and channels from these on, a panel of each."""
    for row in range(3):
        for column in range(3):
            for k in range(PANEL):
                for c in range(PANEL):
                    at = (3 * row + column) * PANEL * PANEL
                    piece[at + c * PANEL + k] = weight[output + k, channel + c, row, column]


@compiled
def _expand_column(piece: np.ndarray, at: int, half: Any) -> Any:
    row = 3 * PANEL * PANEL
    return _expand(load(piece, at), load(piece, at + row), load(piece, at + 2 * row), half)


@compiled
def transform_back(sums: np.ndarray, into: np.ndarray, start: int, end: int) -> None:
    """Writes G^T u G of the panels `start` to `end` into `[K, 3, 3, C]`."""
    outputs, _, _, channels = into.shape
    step = outputs * channels + GAP
    piece = np.empty(9 * PANEL * PANEL, np.float32)  # `[3, 3, C, K]`, in the cache
    half = splat(HALF, 0)
    for panel in range(start, end):
        for first in range(0, channels, PANEL):
            for c in range(PANEL):
                for k in range(0, PANEL, LANES):
                    at = (panel * channels + first + c) * PANEL + k
                    a = _reduce_row(sums, at, step, half)
                    b = _reduce_row(sums, at + 4 * step, step, half)
                    c_ = _reduce_row(sums, at + 8 * step, step, half)
                    d = _reduce_row(sums, at + 12 * step, step, half)
                    at = c * PANEL + k
                    _write_column(piece, at, _reduce(a[0], b[0], c_[0], d[0], half))
                    _write_column(piece, at + PANEL * PANEL, _reduce(a[1], b[1], c_[1], d[1], half))
                    _write_column(piece, at + 2 * PANEL * PANEL, _reduce(a[2], b[2], c_[2], d[2], half))
            _write_piece(piece, into, panel * PANEL, first)


@compiled
def _write_piece(piece: np.ndarray, into: np.ndarray, output: int, channel: int) -> None:
    for k in range(PANEL):
        for row in range(3):
            for column in range(3):
                at = (3 * row + column) * PANEL * PANEL + k
                for c in range(PANEL):
                    into[output + k, row, column, channel + c] = piece[at + c * PANEL]


@compiled
def _write_column(piece: np.ndarray, at: int, column: Any) -> None:
    row = 3 * PANEL * PANEL
    store(piece, at, column[0])
    store(piece, at + row, column[1])
    store(piece, at + 2 * row, column[2])


@compiled
def _reduce_row(sums: np.ndarray, at: int, step: int, half: Any) -> Any:
    return _reduce(load(sums, at), load(sums, at + step), load(sums, at + 2 * step), load(sums, at + 3 * step), half)


@compiled
def _expand(a: Any, b: Any, c: Any, half: Any) -> Any:
    """G times a column."""
    return a, half * (a + b + c), half * (a - b + c), c


@compiled
def _reduce(a: Any, b: Any, c: Any, d: Any, half: Any) -> Any:
    """G^T times a column."""
    return a + half * (b + c), half * (b - c), half * (b + c) + d


@compiled
def _spread(a: Any, b: Any, c: Any, d: Any) -> Any:
    """B^T times a column."""
    return a - c, b + c, c - b, d - b


@compiled
def _gather(a: Any, b: Any, c: Any, d: Any) -> Any:
    """A^T times a column."""
    return a + b + c, b - c + d


@compiled
def _lift(a: Any, b: Any) -> Any:
    """A times a column."""
    return a, a + b, a - b, b


@compiled
def read_inputs(x: np.ndarray, first: int, count: int, block: int, tiles: np.ndarray) -> None:
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


@compiled
def _read_input(
    pixels: np.ndarray, corner: int, row: int, channels: int, tile: int, block: int, tiles: np.ndarray
) -> None:
    step = channels * block + GAP
    for c in range(0, channels, LANES):
        a = _read_column(pixels, corner + c, row)
        b = _read_column(pixels, corner + c + channels, row)
        c_ = _read_column(pixels, corner + c + 2 * channels, row)
        d = _read_column(pixels, corner + c + 3 * channels, row)
        at = c * block + tile * LANES
        _write_row(tiles, at, step, _spread(a[0], b[0], c_[0], d[0]))
        _write_row(tiles, at + 4 * step, step, _spread(a[1], b[1], c_[1], d[1]))
        _write_row(tiles, at + 8 * step, step, _spread(a[2], b[2], c_[2], d[2]))
        _write_row(tiles, at + 12 * step, step, _spread(a[3], b[3], c_[3], d[3]))


@compiled
def _read_column(pixels: np.ndarray, at: int, row: int) -> Any:
    return _spread(load(pixels, at), load(pixels, at + row), load(pixels, at + 2 * row), load(pixels, at + 3 * row))


@compiled
def _write_row(into: np.ndarray, at: int, step: int, row: Any) -> None:
    """Writes four positions."""
    store(into, at, row[0])
    store(into, at + step, row[1])
    store(into, at + 2 * step, row[2])
    store(into, at + 3 * step, row[3])


@compiled
def read_gradients(gradient: np.ndarray, first: int, count: int, block: int, lifted: np.ndarray) -> None:
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
        for k in range(0, outputs, LANES):
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


@compiled
def write_outputs(products: np.ndarray, bias: np.ndarray, y: np.ndarray, first: int, count: int, block: int) -> None:
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
        for k in range(0, outputs, LANES):
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


@compiled
def _gather_row(products: np.ndarray, at: int, step: int) -> Any:
    return _gather(
        load(products, at), load(products, at + step), load(products, at + 2 * step), load(products, at + 3 * step)
    )

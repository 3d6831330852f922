"""The matrix products of tiles and transformed weights, with their sums in registers; see `winograd.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from detkit.accelerate.compiled import compiled
from detkit.accelerate.vectors import LANES, load, multiply_add, splat, store, zero
from detkit.accelerate.winograd_tiles import GAP, PANEL

ROWS = 6  # tiles that `multiply` takes at once
PANELS = 2 * LANES // PANEL  # panels that two vectors fill


@compiled
def multiply(
    tiles: np.ndarray,
    weight: np.ndarray,
    products: np.ndarray,
    position: int,
    count: int,
    block: int,
    channels: int,
    outputs: int,
) -> None:
    """Writes products `[T, K]` = tiles `[T, C]` weight `[C, K]` of a position, six tiles and two vectors at a time.

    Their sums are in registers: a to f are the six tiles, 0 and 1 the two vectors.
    """
    tiles_start = position * (channels * block + GAP)
    weight_start = position * (outputs * channels + GAP)
    products_start = position * (outputs * block + GAP)
    for panel in range(0, outputs // PANEL, PANELS):
        apart_in = _apart(panel, outputs, channels)
        apart_out = _apart(panel, outputs, block)
        for tile in range(0, count, ROWS):
            a0, b0, c0, d0, e0, f0 = zero(), zero(), zero(), zero(), zero(), zero()
            a1, b1, c1, d1, e1, f1 = zero(), zero(), zero(), zero(), zero(), zero()
            w = weight_start + panel * channels * PANEL
            for group in range(channels // LANES):
                t = tiles_start + (group * block + tile) * LANES
                for t_ in range(t, t + LANES):
                    w0, w1 = load(weight, w), load(weight, w + apart_in)
                    a, b, c = splat(tiles, t_), splat(tiles, t_ + LANES), splat(tiles, t_ + 2 * LANES)
                    a0, a1 = multiply_add(a, w0, a0), multiply_add(a, w1, a1)
                    b0, b1 = multiply_add(b, w0, b0), multiply_add(b, w1, b1)
                    c0, c1 = multiply_add(c, w0, c0), multiply_add(c, w1, c1)
                    d, e, f = splat(tiles, t_ + 3 * LANES), splat(tiles, t_ + 4 * LANES), splat(tiles, t_ + 5 * LANES)
                    d0, d1 = multiply_add(d, w0, d0), multiply_add(d, w1, d1)
                    e0, e1 = multiply_add(e, w0, e0), multiply_add(e, w1, e1)
                    f0, f1 = multiply_add(f, w0, f0), multiply_add(f, w1, f1)
                    w += PANEL
            at = products_start + (panel * block + tile) * PANEL
            _write_pair(products, at, apart_out, a0, a1)
            _write_pair(products, at + PANEL, apart_out, b0, b1)
            _write_pair(products, at + 2 * PANEL, apart_out, c0, c1)
            _write_pair(products, at + 3 * PANEL, apart_out, d0, d1)
            _write_pair(products, at + 4 * PANEL, apart_out, e0, e1)
            _write_pair(products, at + 5 * PANEL, apart_out, f0, f1)


@compiled
def accumulate(
    tiles: np.ndarray,
    lifted: np.ndarray,
    sums: np.ndarray,
    position: int,
    count: int,
    block: int,
    channels: int,
    outputs: int,
) -> None:
    """Adds tiles^T `[C, T]` lifted `[T, K]` to the sums `[C, K]` of a position, four inputs, two vectors at a time.

    These are in registers: a to d are the four inputs, 0 and 1 the two vectors.
    """
    tiles_start = position * (channels * block + GAP)
    lifted_start = position * (outputs * block + GAP)
    sums_start = position * (outputs * channels + GAP)
    for panel in range(0, outputs // PANEL, PANELS):
        apart_in = _apart(panel, outputs, block)
        apart = _apart(panel, outputs, channels)
        for channel in range(0, channels, 4):
            at = sums_start + (panel * channels + channel) * PANEL
            a0, a1 = load(sums, at), load(sums, at + apart)
            b0, b1 = load(sums, at + PANEL), load(sums, at + PANEL + apart)
            c0, c1 = load(sums, at + 2 * PANEL), load(sums, at + 2 * PANEL + apart)
            d0, d1 = load(sums, at + 3 * PANEL), load(sums, at + 3 * PANEL + apart)
            t = tiles_start + channel // LANES * block * LANES + channel % LANES
            g = lifted_start + panel * block * PANEL
            for _ in range(count):
                g0, g1 = load(lifted, g), load(lifted, g + apart_in)
                a, b, c, d = splat(tiles, t), splat(tiles, t + 1), splat(tiles, t + 2), splat(tiles, t + 3)
                a0, a1 = multiply_add(a, g0, a0), multiply_add(a, g1, a1)
                b0, b1 = multiply_add(b, g0, b0), multiply_add(b, g1, b1)
                c0, c1 = multiply_add(c, g0, c0), multiply_add(c, g1, c1)
                d0, d1 = multiply_add(d, g0, d0), multiply_add(d, g1, d1)
                t += LANES
                g += PANEL
            _write_pair(sums, at, apart, a0, a1)
            _write_pair(sums, at + PANEL, apart, b0, b1)
            _write_pair(sums, at + 2 * PANEL, apart, c0, c1)
            _write_pair(sums, at + 3 * PANEL, apart, d0, d1)


@compiled
def _apart(panel: int, outputs: int, rows: int) -> int:
    """How far the second vector lies behind the first: half a panel of `rows` rows, or a whole one; 0 after the last
    panel, where both are one and the same."""
    if PANELS == 1:
        return LANES
    return rows * PANEL if (panel + 1) * PANEL < outputs else 0


@compiled
def _write_pair(into: np.ndarray, at: int, apart: int, first: Any, second: Any) -> None:
    store(into, at, first)
    store(into, at + apart, second)

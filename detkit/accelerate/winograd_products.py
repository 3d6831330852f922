"""The matrix products of tiles and transformed weights, with their sums in registers; see `winograd.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from detkit.accelerate.compiled import compiled
from detkit.accelerate.vectors import load, multiply_add, splat, store, zero
from detkit.accelerate.winograd_tiles import GAP, PANEL

ROWS = 6  # tiles that `multiply` takes at once


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


@compiled
def _write_pair(into: np.ndarray, at: int, first: Any, second: Any) -> None:
    store(into, at, first)
    store(into, at + 8, second)

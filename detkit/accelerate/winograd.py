"""Convolution 3 x 3, stride 1, padding 1, and its gradients, by Winograd's F(2 x 2, 3 x 3); arXiv 1509.09308.

A tile of 4 x 4 inputs gives 2 x 2 outputs with 16 multiplications a channel instead of 36:

    y = A^T [sum over c of (G g G^T) * (B^T d B)] A

So each of the 16 positions of a tile has a matrix product of its own, tiles x C times C x K. A block of tiles goes
through all steps while it is in the cache. The sums are shorter than those of a direct convolution, and so the rounding
error of float32 is smaller.

Legend: B images of H x W pixels, C channels in, K out, T tiles of a block, L numbers of a vector. In memory: tiles
`[16, C / L, T, L]`, products `[16, K / 16, T, 16]`, transformed weights `[16, K / 16, C, 16]`. A gap follows each of
the 16 positions: without it they would lie a power of two apart, and their addresses would compete for the same lines
of the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from detkit.accelerate.compiled import compiled, count_parts, run, threaded
from detkit.accelerate.winograd_products import ROWS, accumulate, multiply
from detkit.accelerate.winograd_tiles import (
    GAP,
    PANEL,
    read_gradients,
    read_inputs,
    transform_back,
    transform_weight,
    write_outputs,
)

BLOCK = 96  # tiles; more would not fit into the cache, with fewer the weights are read more often
MIN_TILES = 32  # of one thread


def convolution3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[B, K, H, W]`, as `conv2d` with padding 1; all float32.

    x       `[B, C, H, W]` in the memory format channels_last
    weight  `[K, C, 3, 3]`
    bias    `[K]` or None
    """
    y: Tensor = _Convolution3x3.apply(x, weight, bias)
    return y


class _Convolution3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight.detach().numpy(), bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_output = grad_output.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = grad_bias = None
        differentiable = torch.is_grad_enabled()  # the gradient will have a gradient, which torch's operations have
        if ctx.needs_input_grad[0]:
            if differentiable:
                grad_x = conv2d_input(x.shape, weight, grad_output, padding=1)  # type: ignore[no-untyped-call]
            else:
                grad_x = _convolve(grad_output, weight.detach().numpy()[:, :, ::-1, ::-1].transpose(1, 0, 2, 3), None)
        if ctx.needs_input_grad[1]:
            if differentiable:
                grad_weight = conv2d_weight(x, weight.shape, grad_output, padding=1)  # type: ignore[no-untyped-call]
            else:
                grad_weight = _weight_gradient(x, grad_output)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum(dim=(0, 2, 3))
        return grad_x, grad_weight, grad_bias


def _convolve(x: Tensor, weight: np.ndarray, bias: Tensor | None) -> Tensor:
    images, channels, height, width = x.shape
    transformed = np.empty(16 * (len(weight) * channels + GAP), np.float32)
    run(transform_weight, _transform_weight_in_parts, (weight, transformed), len(weight) // PANEL)
    shape = (images, len(weight), height, width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    bias = x.new_zeros(len(weight)) if bias is None else bias.detach()
    arguments = (_pixels(x), transformed, np.ascontiguousarray(bias.numpy()), _pixels(y))
    run(_convolve_tiles, _convolve_tiles_in_parts, arguments, _count_tiles(x), min_part=MIN_TILES)
    return y


def _weight_gradient(x: Tensor, grad_output: Tensor) -> Tensor:
    outputs, channels, tiles = grad_output.shape[1], x.shape[1], _count_tiles(x)
    sums = np.zeros((count_parts(tiles, MIN_TILES), 16 * (outputs * channels + GAP)), np.float32)  # of each part
    arguments = (_pixels(x), _pixels(grad_output), sums)
    run(_correlate_all_tiles, _correlate_tiles_in_parts, arguments, tiles, min_part=MIN_TILES)
    grad_weight = np.empty((outputs, 3, 3, channels), np.float32)
    run(
        transform_back,
        _transform_back_in_parts,
        (sums[0] if len(sums) == 1 else np.add.reduce(sums), grad_weight),
        outputs // PANEL,
    )
    return torch.from_numpy(grad_weight).permute(0, 3, 1, 2)


def _pixels(x: Tensor) -> np.ndarray:
    """`[B, H, W, C]`, the same memory as `x` in the memory format channels_last."""
    return x.detach().permute(0, 2, 3, 1).numpy()


def _count_tiles(x: Tensor) -> int:
    return len(x) * -(-x.shape[2] // 2) * -(-x.shape[3] // 2)


@compiled
def _convolve_tiles(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, start: int, end: int) -> None:
    """Writes the outputs y `[B, H, W, K]` of the tiles `start` to `end`, which are counted over all images."""
    channels, outputs = x.shape[3], y.shape[3]
    block = min(BLOCK, (end - start + ROWS - 1) // ROWS * ROWS)
    tiles = np.empty(16 * (channels * block + GAP), np.float32)
    products = np.empty(16 * (outputs * block + GAP), np.float32)
    for first in range(start, end, block):
        count = min(block, end - first)
        read_inputs(x, first, count, block, tiles)
        for position in range(16):
            multiply(tiles, weight, products, position, count, block, channels, outputs)
        write_outputs(products, bias, y, first, count, block)


@compiled
def _correlate_tiles(x: np.ndarray, gradient: np.ndarray, sums: np.ndarray, start: int, end: int) -> None:
    """Adds the gradient of the transformed weights of the tiles `start` to `end`."""
    channels, outputs = x.shape[3], gradient.shape[3]
    block = min(BLOCK, (end - start + ROWS - 1) // ROWS * ROWS)
    tiles = np.empty(16 * (channels * block + GAP), np.float32)
    lifted = np.empty(16 * (outputs * block + GAP), np.float32)
    for first in range(start, end, block):
        count = min(block, end - first)
        read_inputs(x, first, count, block, tiles)
        read_gradients(gradient, first, count, block, lifted)
        for position in range(16):
            accumulate(tiles, lifted, sums, position, count, block, channels, outputs)


def _correlate_all_tiles(x: np.ndarray, gradient: np.ndarray, sums: np.ndarray, start: int, end: int) -> None:
    _correlate_tiles(x, gradient, sums[0], start, end)


@threaded
def _convolve_tiles_in_parts(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, total: int, parts: int
) -> None:
    for part in prange(parts):
        _convolve_tiles(x, weight, bias, y, part * total // parts, (part + 1) * total // parts)


@threaded
def _correlate_tiles_in_parts(x: np.ndarray, gradient: np.ndarray, sums: np.ndarray, total: int, parts: int) -> None:
    for part in prange(parts):
        _correlate_tiles(x, gradient, sums[part], part * total // parts, (part + 1) * total // parts)


@threaded
def _transform_weight_in_parts(weight: np.ndarray, into: np.ndarray, total: int, parts: int) -> None:
    for part in prange(parts):
        transform_weight(weight, into, part * total // parts, (part + 1) * total // parts)


@threaded
def _transform_back_in_parts(sums: np.ndarray, into: np.ndarray, total: int, parts: int) -> None:
    for part in prange(parts):
        transform_back(sums, into, part * total // parts, (part + 1) * total // parts)

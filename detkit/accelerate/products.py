"""Linear layers by oneDNN, which on AMD's processors with AVX-512 takes half the time of the library that torch uses.

Measured with torch 2.14 on a core of Zen 5: MKL, which uses only AVX2 there, reaches 80 to 108 GFLOP/s; oneDNN 180 to
240, and for the gradient of the weights 90 to 210. Results differ by rounding.
"""

from __future__ import annotations

from functools import cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.accelerate import processor
from detkit.ops.dispatch import are_plain

MIN_MULTIPLICATIONS = 1 << 18  # fewer take so little time that starting them counts
PART = 4096  # rows and columns that the gradient of the weights takes at once, as oneDNN copies them


class FastLinear(nn.Linear):
    """A linear layer that chooses the fastest way to compute itself for each input."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `F.linear`, the faster way."""
    return product(x, weight, bias) if is_product_faster(x, weight, bias) else F.linear(x, weight, bias)


def is_product_faster(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `product` can take these, and saves time. False where they do not fit, so that torch raises its error."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        processor.is_amd_with_avx512()
        and _oneDNN_multiplies()
        and x.dim() > 1
        and x.shape[-1] == weight.shape[1]
        and x.numel() * len(weight) >= MIN_MULTIPLICATIONS
        and all(tensor.dtype == torch.float32 for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and are_plain(*tensors)
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[..., K]`, as `F.linear`; all float32.

    x       `[..., C]`
    weight  `[K, C]`
    bias    `[K]` or None
    """
    y: Tensor = _Product.apply(x, weight, bias, -1)
    return y


def convolution1x1(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`[B, K, H, W]` in the memory format channels_last, as `conv2d`; all float32.

    x       `[B, C, H, W]`
    weight  `[K, C, 1, 1]`
    bias    `[K]` or None
    """
    y: Tensor = _Product.apply(x, weight.flatten(1), bias, 1)
    return y


class _Product(torch.autograd.Function):
    """`channels` is the dimension of x and of the result that is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, channels: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.channels = channels
        rows = x.movedim(channels, -1)
        y = _multiply(_flat(rows), weight, bias).view(*rows.shape[:-1], -1)
        return y.movedim(-1, channels).data  # no view: to write into one that has a gradient, torch copies all of it

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()  # the gradient will have a gradient, which torch's operations have
        rows, slopes = x.movedim(ctx.channels, -1), _flat(grad_output.movedim(ctx.channels, -1))
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            multiply = F.linear if create_graph else _multiply
            grad_x = multiply(slopes, weight.t()).view(rows.shape).movedim(-1, ctx.channels)
        if ctx.needs_input_grad[1]:
            flat = _flat(rows)
            grad_weight = slopes.t() @ flat if create_graph else _gradient_of_weight(slopes, flat, weight)
        if ctx.needs_input_grad[2]:
            grad_bias = slopes.sum(dim=0)
        return grad_x, grad_weight, grad_bias, None


def _flat(rows: Tensor) -> Tensor:
    """`[N, C]` without gaps, for which oneDNN would take a hundred times as long."""
    return rows.reshape(-1, rows.shape[-1]).contiguous()


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _gradient_of_weight(slopes: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """`[K, C]`; slopes `[N, K]`, rows `[N, C]`."""
    gradient = torch.empty_like(weight)
    for columns, of_columns in zip(torch.split(gradient, PART, dim=1), torch.split(rows, PART, dim=1), strict=True):
        parts = zip(torch.split(slopes, PART), torch.split(of_columns, PART), strict=True)
        columns.copy_(reduce(Tensor.add_, (_transposed_product(*part, columns) for part in parts)))
    return gradient


def _transposed_product(slopes: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    y: Tensor  # of the shape of `like`, of which nothing else is read
    y, _ = torch.ops.aten.mkldnn_linear_backward_weights(slopes.to_mkldnn(), rows.to_mkldnn(), like, False)
    return y


@cache
def _oneDNN_multiplies() -> bool:
    """Whether torch offers oneDNN's products, which are not documented."""
    x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
    try:
        y = _multiply(x, weight, bias)
        return bool((y == 4).all() and (_gradient_of_weight(y, x, weight) == 8).all())
    except (AttributeError, RuntimeError, TypeError):
        return False

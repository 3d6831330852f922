"""Linear layers by oneDNN, which on AMD's processors with AVX-512 takes half the time of the library that torch uses.

Measured with torch 2.14 on a core of Zen 5: MKL, which uses only AVX2 there, reaches 80 to 108 GFLOP/s; oneDNN 180 to
240, and for the gradient of the weights 150 to 230. Results differ by rounding.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.accelerate import processor
from detkit.ops.dispatch import are_plain

MIN_MULTIPLICATIONS = 1 << 18  # fewer take so little time that starting them counts


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
    y: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], len(weight))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # the gradient will have a gradient, which torch's operations have
        multiply = F.linear if torch.is_grad_enabled() else _multiply
        grad_x = multiply(grad_output, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = multiply(grad_output.t(), x.t()) if ctx.needs_input_grad[1] else None
        grad_bias = grad_output.sum(dim=0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


@cache
def _oneDNN_multiplies() -> bool:
    """Whether torch offers oneDNN's product, which is not documented."""
    x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
    try:
        return bool((_multiply(x, weight, bias) == 4).all())
    except (AttributeError, RuntimeError, TypeError):
        return False

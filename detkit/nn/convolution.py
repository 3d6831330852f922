"""Convolutions of a built detector in the form that runs fastest, with the weights and the checkpoint that they had.

Measured with torch 2.14 and its oneDNN on two Zen 3 cores (AVX2). Results differ by rounding from those of the modules
as they were built.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight
from torchvision.ops import FrozenBatchNorm2d

from detkit.ops.compiled import usable

LEAST_CHANNELS = 16  # in, of a convolution whose gradient is worth a copy
LEAST_PIXELS = 400  # out, of all images, of a convolution whose weights are worth a transform


def accelerate(network: nn.Module) -> None:
    """Makes every `nn.Conv2d` of `network` a `FastConv2d`, in channels_last.

    A frozen batch norm right after a convolution, among the children of one module, becomes a part of it: `network`
    must run what it has in that order, as torchvision's classifiers do.
    """
    for parent in network.modules():
        for conv, norm in pairwise(parent.children()):
            if type(conv) is nn.Conv2d and type(norm) is FrozenBatchNorm2d:
                conv.__class__, norm.__class__ = FastConv2d, _FoldedBatchNorm2d
                conv.norm = (norm,)  # type: ignore[assignment]  # in a tuple it is no submodule of the convolution too
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = FastConv2d
    network.to(memory_format=torch.channels_last)


class _FoldedBatchNorm2d(FrozenBatchNorm2d):  # type: ignore[misc]
    """Its work is done by the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class FastConv2d(nn.Conv2d):
    """A convolution and the frozen batch norm after it, if there is one.

    norm(W x + b) = scale (W x + b) + shift = (scale W) x + (scale b + shift): for constant scale and shift the scaled
    weights save a pass over the features, and its memory, in training as in inference.
    """

    norm: tuple[FrozenBatchNorm2d, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        for norm in self.norm:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * scale
            weight, bias = weight * scale[:, None, None, None], shift if bias is None else shift + scale * bias
        if not _is_dense_with_avx2(self, x):
            y: Tensor = self._conv_forward(x, weight, bias)
        elif _is_for_winograd(self, x):
            from detkit.ops.winograd_cpu import Convolution3x3

            y = Convolution3x3.apply(x, weight, bias)
        elif _has_slow_gradient(self):
            y = _Convolution.apply(x, weight, bias, self.stride, self.padding, self.dilation)
        else:
            y = self._conv_forward(x, weight, bias)
        return y


def _is_dense_with_avx2(conv: nn.Conv2d, x: Tensor) -> bool:
    """Where oneDNN leaves time on the table: dense weights larger than 1 x 1 in channels_last, without AVX-512.

    An input of another shape or dtype than the weights take is left to torch, which says so.
    """
    return (
        x.dim() == 4
        and x.shape[1] == conv.in_channels
        and conv.groups == 1
        and max(conv.kernel_size) > 1
        and conv.in_channels >= LEAST_CHANNELS
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and x.device.type == "cpu"
        and x.dtype == conv.weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _is_for_winograd(conv: nn.Conv2d, x: Tensor) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == conv.padding == (1, 1)
        and conv.in_channels % 16 == conv.out_channels % 16 == 0
        and len(x) * x.shape[2] * x.shape[3] >= LEAST_PIXELS
        and usable(x)
    )


def _has_slow_gradient(conv: nn.Conv2d) -> bool:
    """It takes 1.6 to 5 times as long as in the contiguous format there, which is worth two copies."""
    return torch.is_grad_enabled() and conv.weight.requires_grad


class _Convolution(torch.autograd.Function):
    """`conv2d` in channels_last, but for the gradient of the weight, which is computed in the contiguous format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry  # stride, padding, dilation
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[1]:  # first: its copies are gone before there is another gradient
            plain = x.contiguous(), weight.shape, gradient.contiguous()
            of_weight = conv2d_weight(*plain, *ctx.geometry)  # type: ignore[no-untyped-call]
            del plain
        if ctx.needs_input_grad[0]:
            of_x = conv2d_input(x.shape, weight, gradient, *ctx.geometry)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(dim=(0, 2, 3))
        return of_x, of_weight, of_bias, None, None, None

"""Convolutions that are faster than torch's: of one pixel, and on some processors of 1 x 1 and larger ones.

Where a faster form is used was decided by measurements with torch 2.14 and its oneDNN on two Zen 3 cores (AVX2), and on
two AMD cores with AVX-512, where inference and training of SSD300 and of Faster R-CNN R50-FPN took 1.35 to 1.44 times
as long without it. Results differ by rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from detkit.accelerate import processor
from detkit.accelerate.products import convolution1x1, is_product_faster, linear
from detkit.ops.dispatch import are_plain, attempt

MIN_IN_CHANNELS = 16  # with fewer, the copies that the gradient takes here cost more time than they save
MIN_OUT_PIXELS = 400  # over all images; with fewer, transforming the weights for Winograd costs more than it saves


Sources = list[tuple[Tensor, int, int]]  # tensors, their versions and addresses


class FastConv2d(nn.Conv2d):
    """A convolution that chooses the fastest way to compute itself for each input.

    constant  its weights and the norm that follows do not change any more
    folded    where that is so, weight and bias that do what both do, and what they were made of
    """

    constant = False
    folded: tuple[Sources, tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same with other weights and bias, of the shapes of its own."""
        if _is_linear(self, x):
            return linear(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]
        if _is_product(self, x) and is_product_faster(x.permute(0, 2, 3, 1), weight.flatten(1), bias):
            return convolution1x1(x, weight, bias)
        if _corrupts_memory(self, x):
            rows, columns = self.stride
            return F.conv2d(x[:, :, ::rows, ::columns], weight, bias)
        if not _oneDNN_is_slow(self, x, weight, bias):
            y: Tensor = self._conv_forward(x, weight, bias)
            return y
        if _is_for_winograd(self, x):
            winograd: Tensor | None = attempt("convolution3x3", x, weight, bias)
            if winograd is not None:
                return winograd
        if processor.has_avx2_alone() and torch.is_grad_enabled() and weight.requires_grad:
            y = _Convolution.apply(x, weight, bias, self.stride, self.padding, self.dilation)
        else:
            y = self._conv_forward(x, weight, bias)
        return y


def _is_linear(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether this is a 1 x 1 convolution of one pixel, which torch does by a slow, general algorithm."""
    return _is_pointwise(conv, x) and x.shape[2] == x.shape[3] == 1


def _is_product(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether this is a 1 x 1 convolution of pixels whose channels lie in memory one after the other."""
    return _is_pointwise(conv, x) and x.stride(1) == 1


def _is_pointwise(conv: nn.Conv2d, x: Tensor) -> bool:
    return (
        x.dim() == 4
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and x.shape[1] == conv.in_channels
    )


def _corrupts_memory(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether this is a 1 x 1 convolution of few channels with a stride: in channels_last, the gradient of its weights
    writes beyond its memory (torch 2.14). Without the pixels that it skips, it is one without a stride."""
    return (
        conv.kernel_size == (1, 1)
        and conv.stride != (1, 1)
        and conv.in_channels < MIN_IN_CHANNELS
        and conv.groups == 1
        and conv.padding == (0, 0)
        and x.dim() == 4
        and x.shape[1] == conv.in_channels
    )


def _oneDNN_is_slow(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this is a dense convolution larger than 1 x 1 of ordinary tensors in channels_last, where that pays.

    False for an input whose shape or dtype does not fit the weights, so that torch raises its own error.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        (processor.has_avx2_alone() or processor.is_amd_with_avx512())
        and x.dim() == 4
        and x.shape[1] == conv.in_channels
        and conv.groups == 1
        and max(conv.kernel_size) > 1
        and conv.in_channels >= MIN_IN_CHANNELS
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and all(tensor.dtype == torch.float32 for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and are_plain(*tensors)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _is_for_winograd(conv: nn.Conv2d, x: Tensor) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == conv.padding == (1, 1)
        and conv.in_channels % 16 == conv.out_channels % 16 == 0
        and len(x) * x.shape[2] * x.shape[3] >= MIN_OUT_PIXELS
    )


class _Convolution(torch.autograd.Function):
    """`conv2d` in channels_last, except for the gradient of the weight, which is computed in the contiguous format.

    With AVX2 alone channels_last takes 1.6 to 5 times as long, so that copying input and gradient pays. On AMD's
    processors with AVX-512 it takes 0.16 to 0.96 times as long, and 1.2 times from 512 to 1024 channels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry  # stride, padding, dilation
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:  # before grad_input, so that these copies are freed when that is allocated
            contiguous = x.contiguous(), weight.shape, grad_output.contiguous()
            grad_weight = conv2d_weight(*contiguous, *ctx.geometry)  # type: ignore[no-untyped-call]
            del contiguous
        if ctx.needs_input_grad[0]:
            grad_input = conv2d_input(x.shape, weight, grad_output, *ctx.geometry)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum(dim=(0, 2, 3))
        return grad_input, grad_weight, grad_bias, None, None, None

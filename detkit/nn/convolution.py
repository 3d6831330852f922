"""Makes the convolutions of a built network faster on a CPU. Parameters and state dicts stay the same; results differ
by rounding.

Where a faster form is used was decided by measurements with torch 2.14 and its oneDNN on two Zen 3 cores (AVX2).
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

MIN_IN_CHANNELS = 16  # with fewer, the copies that the gradient takes here cost more time than they save
MIN_OUT_PIXELS = 400  # over all images; with fewer, transforming the weights for Winograd costs more than it saves


def accelerate(network: nn.Module) -> None:
    """Turns every `nn.Conv2d` of `network` into a `FastConv2d`, and its weights into channels_last.

    A frozen batch norm that directly follows a convolution among the children of one module becomes a part of it. So
    `network` must run these two in that order, as torchvision's classifiers do.
    """
    for parent in network.modules():
        for conv, norm in pairwise(parent.children()):
            if type(conv) is nn.Conv2d and type(norm) is FrozenBatchNorm2d:
                conv.__class__, norm.__class__ = FastConv2d, _FoldedBatchNorm2d
                # in a tuple, so that the norm does not become a submodule of the convolution as well
                conv.norm = (norm,)  # type: ignore[assignment]
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = FastConv2d
    network.to(memory_format=torch.channels_last)


class _FoldedBatchNorm2d(FrozenBatchNorm2d):  # type: ignore[misc]
    """A batch norm that the convolution before it applies, so that it does nothing itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class FastConv2d(nn.Conv2d):
    """A convolution together with the frozen batch norm that follows it, if there is one.

    norm(W x + b) = scale (W x + b) + shift = (scale W) x + (scale b + shift). As scale and shift are constant, scaling
    the weights instead of the features saves a pass over the features and its memory, in training and in inference.
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
    """Whether oneDNN is slower here than need be: dense weights larger than 1 x 1 in channels_last, without AVX-512.

    False for an input whose shape or dtype does not fit the weights, so that torch raises its own error.
    """
    return (
        x.dim() == 4
        and x.shape[1] == conv.in_channels
        and conv.groups == 1
        and max(conv.kernel_size) > 1
        and conv.in_channels >= MIN_IN_CHANNELS
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
        and len(x) * x.shape[2] * x.shape[3] >= MIN_OUT_PIXELS
        and usable(x)
    )


def _has_slow_gradient(conv: nn.Conv2d) -> bool:
    """Whether the gradient of the weight is computed. In channels_last that takes 1.6 to 5 times as long as in the
    contiguous format, so that copying input and gradient to the latter pays."""
    return torch.is_grad_enabled() and conv.weight.requires_grad


class _Convolution(torch.autograd.Function):
    """`conv2d` in channels_last, except for the gradient of the weight, which is computed in the contiguous format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry  # stride, padding, dilation
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
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

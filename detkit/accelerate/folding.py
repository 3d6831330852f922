"""A batch norm whose statistics do not change becomes a part of the convolution before it.

norm(W x + b) = scale (W x + b) + shift = (scale W) x + (scale b + shift). Scaling the weights instead of the features
saves passes over the features, and in training their memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from detkit.accelerate.convolution import FastConv2d, Sources
from detkit.nn.blocks import BatchNorm2d
from detkit.ops.dispatch import is_traced


def run_in_order(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The output of `modules`, one after the other; a convolution takes the constant norm that follows it with it."""
    waiting: nn.Conv2d | None = None  # a convolution whose successor is not known yet
    for module in modules:
        if waiting is None:
            pass
        elif _is_constant_norm(module):
            x, waiting = _folded(waiting, module, x), None
            continue
        else:
            x, waiting = waiting(x), None
        if isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, FastConv2d) and not _has_hooks(module):
            waiting = module
        else:
            x = module(x)
            if isinstance(module, nn.BatchNorm2d):
                _make_gradient_dense(x)
    return x if waiting is None else waiting(x)


def _make_gradient_dense(y: Tensor) -> None:
    """The gradient of what is joined by `torch.cat` is a slice, for which torch's batch norm in channels_last takes
    many times as long as for a gradient without gaps."""
    if y.requires_grad and not is_traced() and y.is_contiguous(memory_format=torch.channels_last):
        y.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: gradient.contiguous(memory_format=torch.channels_last)
        )


def _is_constant_norm(norm: nn.Module) -> bool:
    """Whether it multiplies and adds the same numbers for every input, and nobody looks at what goes in."""
    if _has_hooks(norm):
        return False
    if type(norm) in (nn.BatchNorm2d, BatchNorm2d):
        return not norm.training and norm.running_mean is not None
    return _is_frozen(norm)


def _is_frozen(norm: nn.Module) -> bool:
    torchvision = sys.modules.get("torchvision.ops.misc")  # None: nobody has imported it, and so this norm is not its
    return torchvision is not None and type(norm) is torchvision.FrozenBatchNorm2d


def _has_hooks(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def _folded(conv: nn.Conv2d, norm: Any, x: Tensor) -> Tensor:
    if not isinstance(conv, FastConv2d):
        y: Tensor = conv._conv_forward(x, *_weight_and_bias(conv, norm))
        return y
    if not conv.constant or torch.is_grad_enabled() or is_traced() or conv.weight.is_inference():
        return conv.convolve(x, *_weight_and_bias(conv, norm))
    tensors = (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    sources = [(tensor, tensor._version, tensor.data_ptr()) for tensor in tensors if tensor is not None]
    if conv.folded is None or not _same(conv.folded[0], sources):
        conv.folded = sources, _weight_and_bias(conv, norm)
    return conv.convolve(x, *conv.folded[1])


def _same(sources: Sources, others: Sources) -> bool:
    return len(sources) == len(others) and all(
        a[0] is b[0] and a[1:] == b[1:] for a, b in zip(sources, others, strict=True)
    )


def _weight_and_bias(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that computes both."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    if conv.bias is not None:
        shift = shift + scale * conv.bias
    return conv.weight * scale.view(-1, 1, 1, 1), shift

"""Batch norm that stands still, as every published R-CNN and DETR has it, at no cost: folded into the convolution.

norm(conv(x)) = scale * (W * x + b) + shift = (scale W) * x + (scale b + shift) for constant scale and shift, so the
scaled weights save a pass over the features, and its memory, in training as in inference. The weights themselves, and
what a checkpoint holds, are those without folding; results differ by rounding.
"""

from __future__ import annotations

from itertools import pairwise

import torchvision
from torch import Tensor, nn


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):  # type: ignore[misc]
    """torchvision's; while it is `folded`, the convolution before it does its work."""

    folded = False

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """`[C]` each, of the result x * scale + shift."""
        scale: Tensor = self.weight * (self.running_var + self.eps).rsqrt()
        shift: Tensor = self.bias - self.running_mean * scale
        return scale, shift

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = x if self.folded else super().forward(x)
        return normed


class FoldedConv2d(nn.Conv2d):
    """`conv` with the weights that it has, and the work of `norm`, which belongs to the module that holds both."""

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self._norm = (norm,)  # in a tuple it is no submodule of this one too
        norm.folded = True

    def forward(self, x: Tensor) -> Tensor:
        norm = self._norm[0]
        weight, bias = self.weight, self.bias
        if norm.folded:
            scale, shift = norm.scale_and_shift()
            weight, bias = weight * scale[:, None, None, None], shift if bias is None else shift + scale * bias
        y: Tensor = self._conv_forward(x, weight, bias)
        return y


def fold_frozen_norms(network: nn.Module) -> None:
    """Folds every frozen norm that a module of `network` has right after a convolution.

    `network` must run what it has in that order, as torchvision's classifiers do.
    """
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (name, conv), (_, norm) in pairwise(children):
            if type(conv) is nn.Conv2d and isinstance(norm, FrozenBatchNorm2d):
                setattr(parent, name, FoldedConv2d(conv, norm))

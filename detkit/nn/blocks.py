"""Layers with weights that several networks are made of.

Shapes: `[B, C, H, W]` -> `[B, C', H', W']`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["linear", "relu", "relu6", "leaky", "logistic", "mish", "swish", "gelu", "prelu"]


def activation(name: Activation) -> nn.Module:
    """The layer of a name; the names, and the slope of 0.1 in `leaky`, are darknet's."""
    match name:
        case "linear":
            return nn.Identity()
        case "relu":
            return nn.ReLU(inplace=True)
        case "relu6":
            return nn.ReLU6(inplace=True)
        case "leaky":
            return nn.LeakyReLU(0.1, inplace=True)
        case "logistic":
            return nn.Sigmoid()
        case "mish":  # whose gradient needs the input, as swish's does: in place, torch would copy that first
            return nn.Mish()
        case "swish":
            return nn.SiLU()
        case "gelu":
            return nn.GELU()
        case "prelu":
            return nn.PReLU()


class BatchNorm2d(nn.BatchNorm2d):
    """A batch norm that trains on a batch with one value per channel too: one image, a map of 1 x 1 (SSD's last).

    One value has no variance, so that the running statistics are used instead.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        y: Tensor = super().forward(x)
        return y


class ConvBlock(nn.Module):
    """Convolution, batch norm (or a bias instead) and activation.

    padding  None: half of the kernel size, which preserves the size of the map at stride 1
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        norm: bool = True,
        act: Activation = "leaky",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=not norm)
        self.norm = BatchNorm2d(out_channels, eps=norm_eps, momentum=norm_momentum) if norm else nn.Identity()
        self.act = activation(act)
        self.out_channels = out_channels
        nn.init.kaiming_normal_(self.conv.weight, a=0.1, nonlinearity="leaky_relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class L2Norm(nn.Module):
    """Divides each cell by its norm over the channels and multiplies each channel by a learned scale (ParseNet, arXiv
    1506.04579)."""

    def __init__(self, channels: int, scale: float, eps: float = 1e-10) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), scale))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.scale[:, None, None] * F.normalize(x, dim=1, eps=self.eps)


class Reorg(nn.Module):
    """Darknet's `reorg`: `[B, C, H, W]` -> `[B, C s^2, H / s, W / s]`.

    This is not space-to-depth: darknet applies the inverse of its own mapping, and reads the input as if its shape were
    `[C / s^2, H s, W s]`, so that the s x s pixels of a neighbourhood do not end up in one cell. The released weights
    of YOLOv2 were trained with exactly this order.
    """

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        s = self.stride
        x = x.reshape(batch, channels // s**2, height, s, width, s)
        x = x.permute(0, 3, 5, 1, 2, 4)
        return x.reshape(batch, channels * s**2, height // s, width // s)


class SPP(nn.Module):
    """Concatenates max pools of several sizes at stride 1, the largest first, and then the input (YOLOv3-SPP)."""

    def __init__(self, sizes: tuple[int, ...] = (5, 9, 13)) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in reversed(sizes))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(pool(x) for pool in self.pools), x], dim=1)


class LocallyConnected(nn.Module):
    """A convolution whose weights are not shared: every output cell has its own (darknet's `local` layer).

    in_size  (h, w) of the input
    weight   `[H' W', out, in k k]`
    bias     `[out, H', W']`
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        in_size: tuple[int, int],
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.padding = kernel_size // 2 if padding is None else padding
        self.out_size = tuple((side + 2 * self.padding - kernel_size) // stride + 1 for side in in_size)
        cells, inputs = self.out_size[0] * self.out_size[1], in_channels * kernel_size**2
        self.weight = nn.Parameter(torch.empty(cells, out_channels, inputs))
        self.bias = nn.Parameter(torch.zeros(out_channels, *self.out_size))
        nn.init.normal_(self.weight, std=(2 / inputs) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)  # [B, in k k, H' W']
        y: Tensor = torch.einsum("bic,coi->boc", patches, self.weight)
        return y.view(x.shape[0], *self.bias.shape) + self.bias


def per_anchor(predictions: Tensor, width: int) -> Tensor:
    """`[B, A * width, H, W]` with A anchors a cell -> `[B, H * W * A, width]`, in the order of a grid of anchors."""
    return predictions.permute(0, 2, 3, 1).reshape(predictions.shape[0], -1, width)

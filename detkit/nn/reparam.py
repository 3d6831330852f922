"""Blocks that train as parallel layers and run as one convolution (RepVGG; Ding et al., arXiv 2101.03697).

Shapes: `[B, C, H, W]` -> `[B, C', H', W']`. Batch norms have eps 1e-3 and momentum .03 where nothing else is stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.blocks import Activation, BatchNorm2d, ConvBlock, activation
from detkit.nn.csp import conv

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@runtime_checkable
class Reparameterised(Protocol):
    def deployed(self) -> nn.Module:
        """A module with fewer layers that computes the same in evaluation."""


def deploy(network: ModuleT) -> ModuleT:
    """`network`, whose blocks are replaced by their deployed forms. It is for evaluation only from then on."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Reparameterised):
                setattr(parent, name, child.deployed())
    return network


class RepConv(nn.Module):
    """A 3x3 and a 1x1 convolution, each with its norm, added up, and with `identity` the norm of the input too.

    identity  needs as many channels out as in, and stride 1
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        identity: bool = False,
        act: Activation = "swish",
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.03,
    ) -> None:
        super().__init__()
        if identity and (in_channels != out_channels or stride != 1):
            raise ValueError(
                f"identity: expected the channels and size of the input, found {out_channels} of "
                f"{in_channels} channels and stride {stride}"
            )
        self.large, self.small = (
            ConvBlock(
                in_channels,
                out_channels,
                size,
                stride,
                act="linear",
                norm_eps=norm_eps,
                norm_momentum=norm_momentum,
            )
            for size in (3, 1)
        )
        self.identity = BatchNorm2d(in_channels, eps=norm_eps, momentum=norm_momentum) if identity else None
        self.act = activation(act)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.large(x) + self.small(x)
        if self.identity is not None:
            y = y + self.identity(x)
        y = self.act(y)
        return y

    @torch.no_grad()
    def deployed(self) -> nn.Sequential:
        large, small = self.large.conv, self.small.conv
        weight, bias = folded(large.weight, self.large.norm)
        small_weight, small_bias = folded(small.weight, self.small.norm)
        weight, bias = weight + F.pad(small_weight, (1, 1, 1, 1)), bias + small_bias
        if self.identity is not None:
            pixel = torch.eye(len(bias), device=bias.device, dtype=bias.dtype)[:, :, None, None]
            pixel, shift = folded(pixel, self.identity)
            weight, bias = weight + F.pad(pixel, (1, 1, 1, 1)), bias + shift
        fused = nn.Conv2d(large.in_channels, large.out_channels, 3, large.stride[0], padding=1)
        fused.to(weight.device, weight.dtype).load_state_dict({"weight": weight, "bias": bias})
        return nn.Sequential(fused, self.act)


def folded(weight: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The weight and the bias of the convolution that computes in evaluation what one without a bias and `norm` do."""
    assert isinstance(norm, BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class RepBottleneck(nn.Module):
    """Two blocks of as many channels, and the input times a learned factor added (YOLOv6's "BottleRep")."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x)) + self.factor * x
        return y


class RepCSP(nn.Module):
    """A share of the channels passes through bottlenecks and as many beside them (YOLOv6's "BepC3").

    blocks  two for each bottleneck, of `hidden` channels
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int, blocks: Sequence[nn.Module], *, act: Activation
    ) -> None:
        super().__init__()
        self.main, self.side = (conv(in_channels, hidden, 1, act=act) for _ in range(2))
        pairs = zip(blocks[::2], blocks[1::2], strict=True)
        self.blocks = nn.Sequential(*(RepBottleneck(first, second) for first, second in pairs))
        self.merge = conv(2 * hidden, out_channels, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.merge(torch.cat([self.blocks(self.main(x)), self.side(x)], dim=1))
        return y


class CSPRepLayer(nn.Module):
    """A 1x1 convolution and a chain of `RepConv`s, another 1x1 convolution beside them, and the two added up (RT-DETR,
    arXiv 2304.08069, section 4.2, "fusion block"). Its norms have torch's eps 1e-5 and momentum .1.

    hidden  channels between; if they are those of the output, no 1x1 convolution follows the sum
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int, blocks: int, *, act: Activation = "swish"
    ) -> None:
        super().__init__()
        self.main, self.side = (ConvBlock(in_channels, hidden, 1, act=act) for _ in range(2))
        self.blocks = nn.Sequential(
            *(RepConv(hidden, hidden, act=act, norm_eps=1e-5, norm_momentum=0.1) for _ in range(blocks))
        )
        self.merge = nn.Identity() if hidden == out_channels else ConvBlock(hidden, out_channels, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.merge(self.blocks(self.main(x)) + self.side(x))
        return y


class RepForm(NamedTuple):
    """How the stages of EfficientRep and RepPAN are built.

    reparameterised  3x3 convolutions are `RepConv`s; else plain ones
    share            of the channels that pass through bottlenecks; None: a chain of 3x3 convolutions without them
    act              of all layers
    """

    reparameterised: bool
    share: float | None
    act: Activation

    def block(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
        """A 3x3 convolution, with the identity where the shape of the input stays."""
        if not self.reparameterised:
            return conv(in_channels, out_channels, 3, stride, act=self.act)
        same = in_channels == out_channels and stride == 1
        return RepConv(in_channels, out_channels, stride, identity=same, act=self.act)

    def stage(self, in_channels: int, out_channels: int, count: int) -> nn.Module:
        """`count` blocks one after the other; a bottleneck counts as two, and there is at least one."""
        if self.share is None:
            widths = [in_channels] + [out_channels] * count
            return nn.Sequential(*(self.block(widths[i], out_channels) for i in range(count)))
        hidden = round(out_channels * self.share)
        blocks = [self.block(hidden, hidden) for _ in range(2 * max(count // 2, 1))]
        return RepCSP(in_channels, out_channels, hidden, blocks, act=self.act)


FormName = Literal["rep", "csp_rep", "csp_conv"]
FORMS: dict[FormName, RepForm] = {  # of YOLOv6: n and s, m, l
    "rep": RepForm(True, None, "relu"),
    "csp_rep": RepForm(True, 2 / 3, "relu"),
    "csp_conv": RepForm(False, 1 / 2, "swish"),
}

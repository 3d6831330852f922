"""Replaces modules of a network by faster ones: convolutions, linear layers, and containers in which a norm follows a
convolution.

A replacement is an object of a subclass with the parameters, buffers, children and settings of the module in whose
place it stands, so that names, state dicts and `isinstance` stay the same. Only modules of exactly the classes listed
here are replaced, because it is known of them in which order they run their children.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from detkit.accelerate.convolution import FastConv2d
from detkit.accelerate.folding import run_in_order
from detkit.accelerate.products import FastLinear
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.blocks import ConvBlock

ModuleT = TypeVar("ModuleT", bound=nn.Module)
MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # of weights of convolutions: of images, of clips


def replace_modules(network: ModuleT, constant: bool) -> ModuleT:
    """See `detkit.accelerate.accelerate`. Weights of convolutions get the memory format channels_last.

    `network` itself is not replaced. A module that stands in several places has one replacement in all of them.
    """
    faster = _faster_classes()
    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and type(child) in faster:
                if child not in replaced:
                    replaced[child] = _as_subclass(child, faster[type(child)])
                setattr(replaced.get(parent, parent), name, replaced[child])
    for module in network.modules():
        if isinstance(module, FastConv2d):
            module.constant = constant
    for parameter in network.parameters():
        if parameter.ndim in MEMORY_FORMATS:
            parameter.data = parameter.data.contiguous(memory_format=MEMORY_FORMATS[parameter.ndim])
    return network


class FastSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return run_in_order(self, x)


class FastConvBlock(ConvBlock):
    def forward(self, x: Tensor) -> Tensor:
        return run_in_order((self.conv, self.norm, self.act), x)


class FastStagedBackbone(StagedBackbone):
    def run(self, blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
        return run_in_order(blocks, x)


def _faster_classes() -> dict[type[nn.Module], type[nn.Module]]:
    faster: dict[type[nn.Module], type[nn.Module]] = {
        nn.Sequential: FastSequential,
        ConvBlock: FastConvBlock,
        StagedBackbone: FastStagedBackbone,
        nn.Conv2d: FastConv2d,
        nn.Linear: FastLinear,
    }
    if "torchvision" in sys.modules:  # else no module of it can be in the network
        from detkit.accelerate.torchvision_blocks import FASTER

        faster |= FASTER
    return faster


def _as_subclass(module: nn.Module, subclass: type[nn.Module]) -> nn.Module:
    replacement = subclass.__new__(subclass)
    replacement.__dict__ = {
        name: value.copy() if isinstance(value, dict) else value for name, value in module.__dict__.items()
    }
    return replacement

"""Networks, plain and accelerated, and what is compared of them."""

import copy

import torch
from torch import Tensor, nn

from detkit.accelerate import accelerate


def accelerated(network: nn.Module) -> nn.Module:
    """A copy with faster modules. `network` itself may be one that is replaced."""
    return accelerate(nn.ModuleList([copy.deepcopy(network)]))[0]


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the input and of every parameter."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    network(x).sin().sum().backward()
    result = [x.grad, *(parameter.grad for parameter in network.parameters())]
    assert all(gradient is not None for gradient in result)
    network.zero_grad()
    return result


def draw_norms(network: nn.Module) -> None:
    """Sets random statistics and affine parameters, so that a missing batch norm changes the outputs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if "BatchNorm2d" in type(module).__name__:
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    value.copy_(0.5 + torch.rand(value.shape, generator=generator))

"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config, UserError
from detkit.engine.parts import check_parts, is_in


class _AnyOptimizerConfig(Config):
    """
    lr          of everything that no other rate is given for
    lr_factors  {part: factor on `lr`}: `{backbone: 0.1, backbone.layer4: 0.5}`; of two parts that have a parameter the
                longer name counts
    no_decay    parts of the names of parameters that have no weight decay: `[norm, relative_position_bias_table]`
    """

    renamed: ClassVar[Mapping[str, str]] = {"backbone_lr_factor": "lr_factors: {backbone: FACTOR}"}

    name: str
    lr: float = Field(gt=0)
    lr_factors: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    no_decay: tuple[str, ...] = ()


class SGDConfig(_AnyOptimizerConfig):
    name: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(1e-4, ge=0)
    decay_norm_and_bias: bool = True  # false: no decay on biases and on the weights of normalisation layers


class AdamWConfig(_AnyOptimizerConfig):
    name: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-2, ge=0)
    decay_norm_and_bias: bool = True


class RMSpropConfig(_AnyOptimizerConfig):
    name: Literal["rmsprop"] = "rmsprop"
    alpha: float = Field(0.99, ge=0, lt=1)  # decay of the mean square; Caffe's rms_decay
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    decay_norm_and_bias: bool = True


OptimizerConfig = Annotated[SGDConfig | AdamWConfig | RMSpropConfig, Field(discriminator="name")]


def build_optimizer(config: OptimizerConfig, detector: nn.Module) -> torch.optim.Optimizer:
    """Each group keeps its full learning rate as `base_lr`; the schedule multiplies it.

    Raises UserError for a part in `lr_factors` or in `no_decay` that the detector does not have.
    """
    check_parts(detector, config.lr_factors, "train.optimizer.lr_factors")
    names = [name for name, _ in detector.named_parameters()]
    for text in config.no_decay:
        if not any(text in name for name in names):
            raise UserError(f"train.optimizer.no_decay: no parameter has {text!r} in its name, such as {names[0]}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            part = max((part for part in config.lr_factors if is_in(name, part)), key=len, default=None)
            lr = config.lr * (config.lr_factors[part] if part else 1.0)
            decays = config.decay_norm_and_bias or parameter.ndim > 1
            decays = decays and not any(text in name for text in config.no_decay)
            groups.setdefault((lr, config.weight_decay if decays else 0.0), []).append(parameter)
    params: list[dict[str, Any]] = [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]
    match config:
        case SGDConfig():
            return torch.optim.SGD(params, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
        case AdamWConfig():
            return torch.optim.AdamW(params, lr=config.lr, betas=config.betas, fused=True)
        case RMSpropConfig():
            return torch.optim.RMSprop(params, lr=config.lr, alpha=config.alpha, momentum=config.momentum)


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads what `optimizer.state_dict()` gave, each tensor in the memory format that its parameter has now.

    That may be another one than it had, and a fused optimizer computes with the numbers as they lie in memory.
    """
    optimizer.load_state_dict(state)
    for parameter, tensors in optimizer.state.items():
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                tensors[name] = torch.empty_like(parameter).copy_(tensor)


def state_per_parameter(config: OptimizerConfig) -> int:
    """Numbers that the optimizer remembers of each parameter."""
    match config:
        case SGDConfig(momentum=momentum):
            return int(momentum > 0)
        case AdamWConfig():
            return 2
        case RMSpropConfig(momentum=momentum):
            return 1 + int(momentum > 0)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor

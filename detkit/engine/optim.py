"""Optimizers and their parameter groups."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from detkit.config import Config


class SGDConfig(Config):
    name: Literal["sgd"] = "sgd"
    lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(1e-4, ge=0)
    decay_norm_and_bias: bool = True  # false: no decay on biases and on the weights of normalisation layers
    backbone_lr_factor: float = Field(1.0, gt=0)


class AdamWConfig(Config):
    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-2, ge=0)
    decay_norm_and_bias: bool = True
    backbone_lr_factor: float = Field(1.0, gt=0)


class RMSpropConfig(Config):
    name: Literal["rmsprop"] = "rmsprop"
    lr: float = Field(gt=0)
    alpha: float = Field(0.99, ge=0, lt=1)  # decay of the mean square; Caffe's rms_decay
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    decay_norm_and_bias: bool = True
    backbone_lr_factor: float = Field(1.0, gt=0)


OptimizerConfig = Annotated[SGDConfig | AdamWConfig | RMSpropConfig, Field(discriminator="name")]


def build_optimizer(config: OptimizerConfig, detector: nn.Module) -> torch.optim.Optimizer:
    """Each group keeps its full learning rate as `base_lr`; the schedule multiplies it."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            lr = config.lr * (config.backbone_lr_factor if name.startswith("backbone.") else 1.0)
            decays = config.decay_norm_and_bias or parameter.ndim > 1
            groups.setdefault((lr, config.weight_decay if decays else 0.0), []).append(parameter)
    params: list[dict[str, Any]] = [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]
    match config:
        case SGDConfig():
            return torch.optim.SGD(params, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
        case AdamWConfig():
            return torch.optim.AdamW(params, lr=config.lr, betas=config.betas)
        case RMSpropConfig():
            return torch.optim.RMSprop(params, lr=config.lr, alpha=config.alpha, momentum=config.momentum)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor

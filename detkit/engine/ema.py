"""Exponential moving average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from pydantic import Field

from detkit.config import Config
from detkit.detectors.detector import AnyDetector


class EMAConfig(Config):
    decay: float = Field(0.9998, gt=0, lt=1)
    warmup: int = Field(2000, ge=0)  # steps; the decay is decay * (1 - exp(-step / warmup)), so early weights fade fast


class EMA:
    """`detector` is a copy whose weights are the moving average of the trained ones; it is validated and saved."""

    def __init__(self, config: EMAConfig, detector: AnyDetector) -> None:
        self.config = config
        self.detector = copy.deepcopy(detector).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, detector: AnyDetector, step: int) -> None:
        """After optimizer step `step` (from 1): float tensors are averaged, counters copied."""
        config = self.config
        decay = config.decay * (1 - math.exp(-step / config.warmup)) if config.warmup else config.decay
        trained = detector.state_dict()
        averaged, current = [], []
        for name, tensor in self.detector.state_dict().items():
            if tensor.is_floating_point():
                averaged.append(tensor)
                current.append(trained[name])
            else:
                tensor.copy_(trained[name])
        torch._foreach_lerp_(averaged, current, 1 - decay)

"""The learning rate as a pure function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from detkit.config import Config


class WarmupConfig(Config):
    """From `start_factor` to 1 over the first `iterations` optimizer steps, linear or as a power of the progress."""

    iterations: int = Field(0, ge=0)
    start_factor: float = Field(1e-3, ge=0, le=1)
    power: float = Field(1.0, gt=0)  # darknet's burn-in: 4, from a start factor of 0


class StepConfig(Config):
    name: Literal["step"] = "step"
    milestones: tuple[float, ...] = ()  # epochs after which the rate is multiplied by gamma; none: constant
    gamma: float = Field(0.1, gt=0)


class CosineConfig(Config):
    name: Literal["cosine"] = "cosine"
    final_factor: float = Field(0.0, ge=0, le=1)  # of the base rate, reached at the last step


ScheduleConfig = Annotated[StepConfig | CosineConfig, Field(discriminator="name")]


def lr_factor(
    schedule: ScheduleConfig, warmup: WarmupConfig, step: int, steps_per_epoch: int, epochs: int, elapsed: float = 0.0
) -> float:
    """Factor on the base learning rate at optimizer step `step` (from 0).

    elapsed  part of the time that the run may take; the schedule, but not the warm-up, is where the steps or the time
             are, whichever is further on, so that a run that ends by the clock ends with the schedule's last rate
    """
    match schedule:
        case StepConfig():
            reached = max(step, elapsed * epochs * steps_per_epoch)
            factor = schedule.gamma ** sum(reached >= epoch * steps_per_epoch for epoch in schedule.milestones)
        case CosineConfig():
            progress = min(1.0, max(elapsed, step / max(1, epochs * steps_per_epoch - 1)))
            factor = schedule.final_factor + (1 - schedule.final_factor) * (1 + math.cos(math.pi * progress)) / 2
    if step < warmup.iterations:
        factor *= warmup.start_factor + (1 - warmup.start_factor) * (step / warmup.iterations) ** warmup.power
    return factor

"""When a run ends: its epochs are done, its time is over, its score rises no more, or SIGTERM asks it to."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType
from typing import Any

from typing_extensions import Self

from detkit.config import UserError
from detkit.data.dataset import ImageDataset
from detkit.engine import distributed
from detkit.engine.settings import TrainConfig
from detkit.engine.validation import has_objects


class Stopping:
    """
    best     the best score so far; -inf: there is none
    stale    validations since then
    elapsed  part of `max_minutes` that is over at the last `tick`, the same in every process; 0 without a limit
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.best, self.stale = -math.inf, 0
        self.elapsed = 0.0
        self.started = time.monotonic()

    def resume(self, best: dict[str, Any] | None, epoch: int, minutes: float) -> None:
        """Goes on after `epoch`.

        best     the progress that stands in the best checkpoint, if there is one
        minutes  that the run has taken
        """
        every = self.config.eval_every
        if best is not None:
            self.best = max(self.best, best["score"])  # -inf if that is nan
            self.stale = epoch // every - best["epoch"] // every
        self.started = time.monotonic() - 60 * minutes

    @property
    def minutes(self) -> float:
        """That the run has taken, for its checkpoint; 0 without a limit, so that equal runs have equal checkpoints."""
        return (time.monotonic() - self.started) / 60 if self.config.max_minutes else 0.0

    def tick(self) -> None:
        if self.config.max_minutes:
            self.elapsed = distributed.of_first(lambda: self.minutes) / self.config.max_minutes

    @property
    def time_is_over(self) -> bool:
        return self.elapsed >= 1

    def is_best(self, score: float) -> bool:
        """Takes note of a validation. Where nothing can be measured (nan) the last one counts as the best."""
        better = score > self.best or (math.isnan(score) and self.best == -math.inf)
        self.best, self.stale = max(self.best, score), 0 if better else self.stale + 1
        return better

    def reason(self, epoch: int) -> str | None:
        """Why the run ends after `epoch` epochs, and what lets it go on; None: it does not end yet."""
        config = self.config
        self.tick()
        if epoch >= config.epochs:
            return f"all {epoch} epochs are done; raise train.epochs to go on"
        if self.time_is_over:
            return f"{config.max_minutes:g} minutes are over in epoch {epoch}; raise train.max_minutes to go on"
        if config.patience and self.stale >= config.patience:
            return (
                f"no score above {self.best:.4f} in {config.patience} validation{'s' * (config.patience > 1)}; raise "
                "train.patience to go on"
            )
        return None


def check_patience(config: TrainConfig, val: ImageDataset | None) -> None:
    """Raises UserError if the run is to end when its score rises no more, but there can be no score."""
    if config.patience and (val is None or not has_objects(val)):
        lack = "there are no validation data" if val is None else f"{val.name} has no object to measure"
        raise UserError(f"train.patience: {lack}, so there is no score to wait for; set train.patience=null")


class Termination:
    """A block in which SIGTERM is only noted, so that whoever runs it can save and leave, as schedulers expect.

    It may come more than once: Slurm and torchrun both send it. Outside the main thread, where Python cannot handle
    signals, the block changes nothing.
    """

    def __init__(self) -> None:
        self.noted = False
        self.before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def has_come(self) -> bool:
        """Whether it came to any of the processes: all must ask."""
        return distributed.any_of(self.noted)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.noted = True

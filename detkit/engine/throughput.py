"""Images a second of the loader and of the step, and which of them limits the training."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from detkit.structures import Batch

WAITING = 0.1  # part of the time spent waiting for the loader above which the loader is what limits


class Throughput:
    """Measures the first epoch: how long the loop waits for batches, and how long for everything else.

    The first batch does not count, as workers start and memory is laid out meanwhile. Only the clock is read here: that
    the times hold what a device does is due to the loop, which waits for it once a step.
    """

    def __init__(self, workers: int, max_batches: int = 100) -> None:
        self.workers, self.max_batches = workers, max_batches
        self.batches = self.images = 0
        self.waited = self.worked = 0.0  # seconds
        self.reported = False

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        asked = time.perf_counter()
        for number, batch in enumerate(batches):
            given = time.perf_counter()
            yield batch
            waited, asked = given - asked, time.perf_counter()
            if number > 0:
                self.add(len(batch), waited, asked - given)

    def add(self, images: int, waited: float, worked: float) -> None:
        """One batch, and the seconds that the loop waited for it and worked on it."""
        self.batches += 1
        self.images += images
        self.waited += waited
        self.worked += worked

    def report(self, *, end_of_epoch: bool = False) -> str | None:
        """One line, once: after `max_batches` or at the end of the first epoch; None: not now."""
        if self.reported or not (end_of_epoch or self.batches >= self.max_batches):
            return None
        self.reported = True
        if not self.batches:
            return None
        seconds = {"all": self.waited + self.worked, "loader": self.waited, "step": self.worked}
        rate = {name: f"{self.images / max(value, 1e-6):.1f} images/s" for name, value in seconds.items()}
        if not self.workers:
            limit = max(("loader", "step"), key=seconds.__getitem__)
            return (
                f"{rate['all']}: loader {rate['loader']}, step {rate['step']}, one after the other; the {limit} takes "
                "longer (loader.workers is 0)"
            )
        if self.waited > WAITING * seconds["all"]:  # it worked all the time, and so gives as much as both together
            return (
                f"{rate['all']}: loader {rate['all']}, step {rate['step']}: the loader limits; raise loader.workers "
                f"({self.workers})"
            )
        return f"{rate['all']}: loader at least that, step {rate['step']}: the step limits"

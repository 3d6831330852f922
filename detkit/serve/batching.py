"""One thread that detects, on several pictures at once where several wait.

Every picture has a future of its own, by which its detections go to whoever asked for them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from detkit.engine.prediction.inference import Predict
from detkit.serve.metrics import Metrics
from detkit.serve.refusal import Refusal, ended, stopping
from detkit.structures import Detections, Size

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Waiting:
    image: np.ndarray
    input_size: Size
    since: float = field(default_factory=monotonic)
    answer: Future[Detections] = field(default_factory=Future)


class Batcher:
    """
    predict     the detections of each of several pictures
    input_size  of a picture of (h, w): those that have the same are detected together, and so without padding
    max_batch   pictures at once
    max_wait    s that a picture waits for others that are `coming`
    """

    def __init__(
        self,
        predict: Predict,
        input_size: Callable[[Size], Size],
        metrics: Metrics,
        *,
        max_batch: int,
        max_wait: float,
    ) -> None:
        self.predict, self.input_size, self.metrics = predict, input_size, metrics
        self.max_batch, self.max_wait = max_batch, max_wait
        self.fault: BaseException | None = None  # what ended the thread
        self.batches = self.pictures = 0
        self._queue: deque[_Waiting] = deque()
        self._coming = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="detector", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Pictures that wait."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @contextmanager
    def coming(self) -> Iterator[None]:
        """A block that is to end with one more picture, for which others may wait."""
        with self._changed:
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                self._changed.notify()

    def submit(self, image: np.ndarray) -> Future[Detections]:
        """Cancel the future and the picture is not detected, if that has not begun. Raises Refusal when closed."""
        height, width = image.shape[:2]
        waiting = _Waiting(image, self.input_size((height, width)))
        waiting.answer.add_done_callback(lambda _: self._forget(waiting))
        with self._changed:
            if self._closed:
                raise ended() if self.fault else stopping()
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.answer

    def close(self, patience: float) -> bool:
        """Refuses what waits and ends the thread; whether it has ended after `patience` s."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._refuse_rest()
        self._thread.join(patience)
        return not self.alive

    def _forget(self, waiting: _Waiting) -> None:
        if waiting.answer.cancelled():
            with self._changed:
                if waiting in self._queue:
                    self._queue.remove(waiting)

    def _refuse_rest(self) -> None:
        with self._changed:
            rest = list(self._queue)
            self._queue.clear()
        for waiting in rest:
            if waiting.answer.set_running_or_notify_cancel():
                waiting.answer.set_exception(ended() if self.fault else stopping())

    def _run(self) -> None:
        batch: list[_Waiting] = []
        try:
            while batch := self._take():
                self._answer(batch)
                batch = []  # no picture stays in memory while the next ones are awaited
        except BaseException as error:
            self.fault = error
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(ended())
            logger.exception("the detector's thread has ended")
        finally:
            with self._changed:
                self._closed = True
            self._refuse_rest()

    def _take(self) -> list[_Waiting]:
        """The pictures to detect next: that which waits longest and those of its input size. Empty: it is the end."""
        with self._changed:
            while not (self._closed and not self._queue):
                if not self._queue:
                    self._changed.wait()
                    continue
                first = self._queue[0]
                batch = [waiting for waiting in self._queue if waiting.input_size == first.input_size]
                patience = first.since + self.max_wait - monotonic()
                if len(batch) < self.max_batch and self._coming and patience > 0:
                    self._changed.wait(patience)
                    continue
                for waiting in batch[: self.max_batch]:
                    self._queue.remove(waiting)
                if taken := [it for it in batch[: self.max_batch] if it.answer.set_running_or_notify_cancel()]:
                    return taken
            return []

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        """Gives each picture its detections. One on which the detector fails does not take its neighbours along."""
        start = monotonic()
        try:
            detections = self.predict([waiting.image for waiting in batch])
            if len(detections) != len(batch):
                raise RuntimeError(f"{len(detections)} answers for {len(batch)} pictures")
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    self._answer([waiting])
                return
            logger.exception("the detector failed on a picture of %s (h, w, 3)", batch[0].image.shape)
            refusal = Refusal(500, "the detector failed on this picture; the log of the server says why")
            refusal.__cause__ = error
            batch[0].answer.set_exception(refusal)
            return
        self.batches += 1
        self.pictures += len(batch)
        self.metrics.batch(len(batch), [start - waiting.since for waiting in batch], monotonic() - start)
        for waiting, found in zip(batch, detections, strict=True):
            waiting.answer.set_result(found)

"""Ctrl-C and SIGTERM: what was done is written, or at least a command ends with its own words."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

if TYPE_CHECKING:
    from detkit.engine.prediction.summary import Summary

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal ended the command. `summary` is of what was done, `status` what the process should end with."""

    summary: Summary | None = None

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def raising_sigterm() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does, by an exception. Outside the main thread it changes nothing."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stop:
    """A block in which the first signal is a request and the second raises `Stopped`, until it is `closing`.

    Outside the main thread Python cannot handle signals, and the block changes nothing.

    signal  the last signal that came; None: none did
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._closing = False
        self._before: dict[int, Any] = {}

    def closing(self) -> None:
        """From now on what was done is being written, which a signal does not interrupt."""
        self._closing = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        first, self.signal = self.signal is None, number
        if self._closing:
            return
        if not first:
            raise Stopped(number)
        print("\nstopping: what is done is written; once more to stop at once", file=sys.stderr)

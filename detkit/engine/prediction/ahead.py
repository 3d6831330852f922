"""A stage of the prediction that works in a thread of its own, ahead of the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")

INTERVAL = 0.1  # s between two looks at whether the work is still of use


class _End:
    """Behind the last item; carries what the iterator raised, if it did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(
    items: Iterator[T], depth: int, stopped: Callable[[], bool] = lambda: False, *, patience: float | None = None
) -> Generator[T, None, None]:
    """The items, computed in a thread that is at most `depth` of them ahead.

    An error of the iterator is raised here, behind the items before it. When `stopped` says so, the items end.

    patience  s to wait, when the items end, for the one that is being computed; None: as long as it takes
    """
    queue: Queue[T | _End] = Queue(depth)
    ended = threading.Event()
    thread = threading.Thread(target=_work, args=(items, queue, ended), daemon=True)
    thread.start()
    try:
        while not stopped():
            try:
                item = queue.get(timeout=INTERVAL)
            except Empty:
                continue
            if not isinstance(item, _End):
                yield item
            elif item.error is None:
                return
            else:
                raise item.error
    finally:
        ended.set()
        thread.join(patience)


def _work(items: Iterator[T], queue: Queue[T | _End], ended: threading.Event) -> None:
    try:
        for item in items:
            if not _put(queue, item, ended):
                return
        _put(queue, _End(), ended)
    except BaseException as error:
        _put(queue, _End(error), ended)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _put(queue: Queue[T | _End], item: T | _End, ended: threading.Event) -> bool:
    """Whether the item went in before nobody reads any more."""
    while not ended.is_set():
        try:
            queue.put(item, timeout=INTERVAL)
        except Full:
            continue
        return True
    return False

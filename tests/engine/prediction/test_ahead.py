"""A stage in a thread of its own."""

import threading
import time
from collections.abc import Iterator

import pytest

from detkit.engine.prediction.ahead import ahead


def test_items_come_in_order_and_an_error_behind_those_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("the sixth")

    stage = ahead(items(), 2)
    assert [next(stage) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the sixth"):
        next(stage)


def test_it_is_at_most_so_many_items_ahead() -> None:
    computed = []

    def items() -> Iterator[int]:
        for number in range(20):
            computed.append(number)
            yield number

    stage = ahead(items(), 3)
    assert next(stage) == 0
    time.sleep(0.3)
    assert len(computed) == 5  # the one that was taken, three in the queue, and one that waits for its place
    stage.close()
    assert len(computed) <= 6


def test_who_stops_reading_ends_the_thread_and_closes_the_items() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    stage = ahead(items(), 1)
    next(stage)
    stage.close()
    assert closed.is_set()


def test_stopping_does_not_wait_for_an_item_that_never_comes() -> None:
    never, stop = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        never.wait()

    begin, received = time.perf_counter(), []
    for item in ahead(items(), 1, stop.is_set, patience=0.2):
        received.append(item)
        threading.Timer(0.3, stop.set).start()
    assert received == [1]
    assert time.perf_counter() - begin < 2
    never.set()

"""Images a second of the loader and of the step, by a clock that is set by hand."""

from collections.abc import Iterator
from typing import Any

import pytest

from detkit.engine import throughput as module
from detkit.engine.throughput import Throughput


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def run(throughput: Throughput, clock: list[float], batches: int, *, wait: float, work: float) -> None:
    """Batches of four images that the loop waits for, and works on, so many seconds; the first takes a minute more."""

    def loader() -> Iterator[Any]:
        for number in range(batches):
            clock[0] += wait + 60 * (number == 0)
            yield [None] * 4

    for _ in throughput.watch(loader()):
        clock[0] += work


@pytest.mark.parametrize(
    ("workers", "wait", "work", "text"),
    [
        (0, 0.1, 0.4, "8.0 images/s: loader 40.0 images/s, step 10.0 images/s, one after the other; the step takes"),
        (0, 0.4, 0.1, "8.0 images/s: loader 10.0 images/s, step 40.0 images/s, one after the other; the loader takes"),
        (2, 0.0, 0.5, "8.0 images/s: loader at least that, step 8.0 images/s: the step limits"),
        (2, 0.04, 0.46, "8.0 images/s: loader at least that, step 8.7 images/s: the step limits"),
        (2, 0.3, 0.2, "8.0 images/s: loader 8.0 images/s, step 20.0 images/s: the loader limits; raise loader.workers"),
    ],
)
def test_the_slower_one_limits(workers: int, wait: float, work: float, text: str, clock: list[float]) -> None:
    throughput = Throughput(workers)
    run(throughput, clock, 6, wait=wait, work=work)
    assert str(throughput.report(end_of_epoch=True)).startswith(text)


def test_it_is_reported_once_after_the_first_epoch_or_many_batches(clock: list[float]) -> None:
    throughput = Throughput(2, max_batches=5)
    run(throughput, clock, 5, wait=0.1, work=0.1)
    assert throughput.report() is None, "four batches count"
    run(throughput, clock, 2, wait=0.1, work=0.1)
    assert throughput.report()
    assert throughput.report(end_of_epoch=True) is None


def test_a_single_batch_says_nothing(clock: list[float]) -> None:
    throughput = Throughput(0)
    run(throughput, clock, 1, wait=0.1, work=0.1)
    assert throughput.report(end_of_epoch=True) is None


def test_a_loader_that_takes_no_time(clock: list[float]) -> None:
    throughput = Throughput(0)
    run(throughput, clock, 3, wait=0.0, work=0.5)
    assert "the step takes longer" in str(throughput.report(end_of_epoch=True))

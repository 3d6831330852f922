"""The loader's processes: what happens when one of them, or the memory they share, fails."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from detkit.config import UserError
from detkit.data.loader import Loader


def doubled(key: int) -> int:
    return 2 * key


def failing(error: Exception, key: int) -> int:
    if key == 3:
        raise error
    return key


def dying(end: Callable[[], None], key: int) -> int:
    if key == 3:
        end()
    return key


def killed_by(number: int) -> Callable[[int], int]:
    return partial(dying, lambda: os.kill(os.getpid(), number))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_results_come_in_the_order_of_the_keys(workers: int) -> None:
    loader: Loader[int] = Loader(doubled, [5, 1, 4, 1], workers=workers)
    assert len(loader) == 4
    for _ in range(2):
        assert list(loader) == [10, 2, 8, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_user_arrives_as_it_was_raised(workers: int) -> None:
    loader: Loader[int] = Loader(partial(failing, UserError("mend this")), range(5), workers=workers)
    items = iter(loader)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"^mend this$"):
        next(items)


def test_another_error_keeps_the_trace_of_its_worker() -> None:
    with pytest.raises(ZeroDivisionError, match="Original Traceback"):
        list(Loader(partial(failing, ZeroDivisionError("by zero")), range(5), workers=1))


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (killed_by(signal.SIGKILL), r"^a worker of the loader was killed, .* memory .*loader.workers"),
        (killed_by(signal.SIGBUS), r"^a worker of the loader ended, as shared memory is full; .*--shm-size=1g\)$"),
        (killed_by(signal.SIGSEGV), r"^a worker of the loader ended: .*Segmentation fault.*loader.workers=0"),
        (partial(dying, lambda: os._exit(7)), r"^a worker of the loader ended: .*exit.*loader.workers=0"),
    ],
)
def test_a_worker_that_dies_is_told_in_one_line(end: Callable[[int], int], message: str) -> None:
    with pytest.raises(UserError, match=message) as ended:
        list(Loader(end, range(9), workers=1))
    assert "\n" not in str(ended.value)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="who sends a signal cannot be asked here")
def test_only_a_sigterm_of_the_training_ends_a_worker() -> None:
    """A scheduler may send one to all processes; here the worker sends it to itself."""
    loader: Loader[int] = Loader(killed_by(signal.SIGTERM), range(9), workers=1)
    for _ in range(2):
        assert list(loader) == list(range(9))
    (worker,) = multiprocessing.active_children()
    deadline = time.monotonic() + 60
    while worker.is_alive() and time.monotonic() < deadline:
        worker.terminate()  # a system merges two signals of which the first was not delivered yet
        worker.join(timeout=1)
    assert worker.exitcode == 0


def test_a_worker_that_dies_is_told_wherever_the_training_is() -> None:
    def train() -> None:
        loader: Loader[int] = Loader(killed_by(signal.SIGKILL), range(9), workers=1)
        for key in loader:
            time.sleep(30 if key else 0.1)  # the worker is at most two keys ahead

    start = time.perf_counter()
    with pytest.raises(UserError, match="a worker of the loader was killed"):
        train()
    assert time.perf_counter() - start < 20


@pytest.mark.filterwarnings("error")
def test_workers_that_cannot_be_started_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python raises where /dev/shm has no room for a semaphore, or the system none for a process."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.Lock", full)
    with pytest.raises(
        UserError, match=r"cannot be started: No space left on device; set loader.workers=0, or .*--shm-size"
    ):
        list(Loader(doubled, [1], workers=1))

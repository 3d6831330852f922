"""Gives changed files to a reader and looks how it ends: with a result or with a `UserError` in its usual form."""

from __future__ import annotations

import gc
import re
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from detkit.config import UserError
from tests.fuzz.mutations import mutate

LIMIT = 5.0  # s of the processor for one input
HANG = 60.0  # s of the clock, after which an input is interrupted
MEMORY = 1 << 30  # bytes by which one input may raise the largest memory of the process
MAX_LINE = 4000  # characters of a line of a message
MAX_FAULTS = 20  # that are recorded of a target, those of one kind once
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")  # and ends of lines but for \n


@dataclass(frozen=True)
class Target:
    """A reader of one kind of files.

    seeds   valid files
    read    takes the path of a file; ends with a result or raises UserError
    suffix  of the file
    words   tokens of the format; none: it is not text
    repair  of half of the inputs: makes a changed file one that is refused later, as with right checksums
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable[[Path], object]
    suffix: str
    words: Sequence[bytes] = ()
    repair: Callable[[Random, bytes], bytes] | None = None

    def input(self, seed: int, number: int) -> bytes:
        """The file with this number; no other has to be made before it."""
        rng = Random(f"{seed} {self.name} {number}")
        data = mutate(rng, self.seeds, self.words)
        return self.repair(rng, data) if self.repair is not None and rng.random() < 0.5 else data


@dataclass
class Tally:
    """
    ends     how often the reader ended so: `result`, or the class of the error
    faults   texts of the ends that are not allowed, by what distinguishes them
    slowest  s of the processor, and the number of the input
    seconds  of the clock, for all inputs
    memory   bytes: the largest of the process; `memory_before`: before the first input
    """

    target: str
    inputs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, -1)
    memory: int = 0
    memory_before: int = 0
    seconds: float = 0.0


class Hang(BaseException):
    """No `Exception`, as readers may catch those."""


def run(
    target: Target, folder: Path, faults: Path, seed: int, *, inputs: int | None = None, seconds: float | None = None
) -> Tally:
    """Reads so many inputs, or for so long. The last one is `folder/input.SUFFIX`, those of faults are in `faults`."""
    tally = Tally(target.name, memory_before=_memory())
    gc.collect()
    gc.freeze()  # the many objects of torch and its like need not be looked through again and again
    start = time.monotonic()
    end = start + (seconds or float("inf"))
    while tally.inputs != inputs and time.monotonic() < end:
        number = tally.inputs
        data = target.input(seed, number)
        fault = try_input(target, data, folder, tally, number)
        if fault is not None:
            kind, text = fault
            if kind not in tally.faults and len(tally.faults) < MAX_FAULTS:
                kept = faults / f"{target.name}-{number}{target.suffix}"
                faults.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(data)
                tally.faults[kind] = f"input {number} of seed {seed}, {kept}:\n{text}"
        tally.inputs += 1
    tally.seconds = time.monotonic() - start
    return tally


def try_input(target: Target, data: bytes, folder: Path, tally: Tally, number: int = 0) -> tuple[str, str] | None:
    """What distinguishes the fault, and its text; None if the reader ended as it may."""
    path = folder / f"input{target.suffix}"
    path.write_bytes(data)
    before, start = _memory(), time.process_time()
    end, fault = _end_of(target, path)
    tally.ends[end] += 1
    spent = time.process_time() - start
    tally.slowest = max(tally.slowest, (spent, number))
    tally.memory = _memory()
    if fault is None and spent > LIMIT:
        fault = "slow", f"{spent:.1f} s of the processor, expected at most {LIMIT:g}"
    if fault is None and tally.memory - before > MEMORY:
        fault = "memory", f"{(tally.memory - before) >> 20} MB more, expected at most {MEMORY >> 20}"
    return fault


def _end_of(target: Target, path: Path) -> tuple[str, tuple[str, str] | None]:
    try:
        with _interrupted(HANG):
            target.read(path)
    except UserError as error:
        fault = message_fault(str(error))
        end = type(error).__name__
        return end, fault and (f"{fault}: {_line_of(error)}", f"{fault}: {str(error)[:1000]!r}")
    except (Exception, Hang) as error:
        text = "".join(traceback.format_exception(error, limit=-12))
        return type(error).__name__, (f"{type(error).__name__}: {_line_of(error)}", text[-4000:])
    return "result", None


def message_fault(message: str) -> str | None:
    """What is wrong with the form of a message: one line, or one and a list whose lines begin with two blanks."""
    first, *others = message.split("\n")
    if not first.strip():
        return "the message is empty"
    if CONTROLS.search(message):
        return "the message has control characters"
    if any(not line.startswith("  ") for line in others):
        return "the message has further lines"
    if max(map(len, (first, *others))) > MAX_LINE:
        return "the message has a very long line"
    return None


def _line_of(error: BaseException) -> str:
    """The last line of detkit that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/detkit/" in frame.filename] or list(frames)
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"


@contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """Raises Hang in the block after so many seconds, as soon as Python code runs."""

    def stop(_: int, __: FrameType | None) -> None:
        raise Hang(f"not at its end after {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _memory() -> int:
    """Bytes: the largest memory of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

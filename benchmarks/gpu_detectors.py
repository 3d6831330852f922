"""Detectors on one device beside their peers, for `benchmarks/gpu.py`: time, memory, host synchronisations, operations.

Each detector is measured in a process of its own, which prints a line of JSON a measurement. The way `channels_last` is
how detkit's tools run a detector (`detkit.accelerate` lays the weights out so); in the others it is as it was built.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from batches import random_batch
from device import Card
from timing import interleaved
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torchvision_detectors import infer, infer_theirs, pictures, targets_of, train, train_theirs

from detkit.detectors.detector import AnyDetector
from detkit.engine.amp import AMP, autocast
from detkit.engine.speed import accelerate, for_prediction
from detkit.structures import Batch, Size

OBJECTS = 8  # of each picture
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """
    size   (h, w) of the pictures, as published
    batch  pictures of a training step; inference is of one
    quick  (h, w) of the pictures of a dry run
    build  device and size -> the detector and its peer, with the same weights
    """

    size: Size
    batch: int
    quick: Size
    build: Callable[[torch.device, Size], Pair]


@dataclass(frozen=True)
class Pair:
    """
    peer        the package that has the same detector; None: none
    model       the peer's
    peer_train  one training step of a batch, the gradients included
    peer_infer  detections of a batch
    """

    detector: AnyDetector
    peer: str | None = None
    model: nn.Module | None = None
    peer_train: Callable[[Batch], object] | None = None
    peer_infer: Callable[[Batch], object] | None = None


@dataclass(frozen=True)
class Way:
    """How a work is run; `peak` is the row of the table of cards that it is compared with."""

    name: str
    amp: AMP = "off"
    tf32: bool = False
    channels_last: bool = False
    compiled: bool = False
    peak: str = "float32"


WAYS = (
    Way("float32"),
    Way("float32 with TF32", tf32=True, peak="tf32"),
    Way("bf16", amp="bf16", tf32=True, peak="bf16"),
    Way("bf16, channels_last", amp="bf16", tf32=True, channels_last=True, peak="bf16"),
    Way("bf16, channels_last, compiled", amp="bf16", tf32=True, channels_last=True, compiled=True, peak="bf16"),
)


@dataclass(frozen=True)
class Row:
    """One measurement, by one side.

    pictures  of one run of the work
    seconds   median of the runs
    grown     MiB by which a run makes the allocated memory grow at its peak; null on the CPU
    syncs     how often a run makes the host wait for the device; null on the CPU
    flops     floating-point operations of convolutions and products of matrices, counted on detkit's side
    share     of the card's peak: flops a second over the peak; null where the card is not in the table
    fails     why there are no figures
    """

    detector: str
    work: str
    way: str
    side: str
    pictures: int
    seconds: float | None = None
    grown: int | None = None
    syncs: int | None = None
    flops: int | None = None
    share: float | None = None
    fails: str | None = None


def measure(name: str, case: Case, device: torch.device, *, quick: bool, repeats: int, deadline: float) -> None:
    """Prints the rows of a detector as lines of JSON, each as soon as it is there. Nothing begins after `deadline`."""
    card, size = Card(device), case.quick if quick else case.size
    pair = case.build(device, size)
    batches = {
        work: random_batch([size] * count, OBJECTS, len(pair.detector.categories), stride=pair.detector.input.stride)
        for work, count in (("inference", 1), ("training step", 2 if quick else case.batch))
    }
    batches = {work: batch.to(device) for work, batch in batches.items()}
    flops = {work: operations(step_of(pair.detector, work, batch, "off")) for work, batch in batches.items()}
    for way in WAYS:
        for work, batch in batches.items():
            row = Row(name, work, way.name, "detkit", len(batch), flops=flops[work])
            if time.time() > deadline:
                print(json.dumps(asdict(replace(row, flops=None, fails="skipped: the time was over"))), flush=True)
                continue
            with tf32(way.tf32):
                for result in rows_of(pair, row, way, batch, card, repeats, quick):
                    print(json.dumps(asdict(result)), flush=True)


def rows_of(pair: Pair, row: Row, way: Way, batch: Batch, card: Card, repeats: int, quick: bool) -> Iterator[Row]:
    """detkit's row and, where there is a peer, the peer's; their runs alternate."""
    sides: dict[str, Work] = {}
    try:
        detector = prepared(pair.detector, row.work, way, quick)
        sides["detkit"] = step_of(detector, row.work, batch, way.amp)
        sides["detkit"]()  # fails here, if it does
    except Exception as error:
        sides.clear()
        yield replace(row, fails=reason(error))
    if pair.peer and not way.compiled:
        try:
            work = peer_step(pair, row.work, way, batch)
            work()
            sides[pair.peer] = work
        except Exception as error:
            yield replace(row, side=pair.peer, fails=reason(error))
    seconds = interleaved(list(sides.values()), repeats, card.device)
    for (side, work), time_of_one in zip(sides.items(), seconds, strict=True):
        share = card.share(row.flops or 0, time_of_one, way.peak)
        grown, syncs = card.peak_growth(work), card.synchronisations(work)
        yield replace(row, side=side, seconds=time_of_one, grown=grown, syncs=syncs, share=share)


def prepared(detector: AnyDetector, work: str, way: Way, quick: bool) -> AnyDetector:
    """A copy as this way runs it. Backbone and neck are compiled, not the head, whose shapes depend on the data."""
    detector = copy.deepcopy(detector)
    if way.compiled:
        torch.compiler.reset()  # else the programs of other copies count towards the limit of one function
        detector.to(memory_format=torch.channels_last)
        for part in (detector.backbone, detector.neck):
            if part is not None:
                part.compile(backend="eager" if quick else "inductor", dynamic=False)
    elif way.channels_last and work == "inference":
        return for_prediction(detector)
    elif way.channels_last:
        accelerate(detector)
    return detector


def step_of(detector: AnyDetector, work: str, batch: Batch, amp: AMP) -> Work:
    return partial(infer if work == "inference" else train, detector, batch, amp)


def peer_step(pair: Pair, work: str, way: Way, batch: Batch) -> Work:
    assert pair.model is not None
    pair.model.to(memory_format=torch.channels_last if way.channels_last else torch.contiguous_format)
    step = pair.peer_infer if work == "inference" else pair.peer_train
    assert step is not None

    def run() -> None:
        with autocast(batch.images.device, way.amp):
            step(batch)

    return run


def torchvision_peer(detector: AnyDetector, model: nn.Module) -> Pair:
    return Pair(
        detector,
        "torchvision",
        model,
        lambda batch: train_theirs(model, pictures(batch), targets_of(batch)),
        lambda batch: infer_theirs(model, pictures(batch)),
    )


def operations(work: Work) -> int:
    """Floating-point operations that torch's counter knows: convolutions, products of matrices, attention."""
    with _Counter() as counter:
        work()
    return counter.total


class _Counter(TorchDispatchMode):
    """torch's formulas. Its own FlopCounterMode also follows the modules, and fails where a module is given a parameter
    without gradients, as DETR's queries in inference."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket not in flop_registry:
            with self:  # in inference mode some arrive whole, such as conv2d
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        outputs = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=outputs))
        return outputs


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    backends: Sequence[Any] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def reason(error: BaseException) -> str:
    """In one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]

"""Batches of a data set: images decoded, augmented and collated in worker processes of one thread each.

BatchSampler (sampler.py)    which images come when: the keys of a batch
Batches                      keys -> batch: load, augment, place, collate
SentBatch (transfer.py)      carries it from its worker to the training
Loader                       any function of a key, in worker processes; here `Batches`
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, TypeVar

import cv2
import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, get_worker_info

from detkit.config import Config, PathText, UserError
from detkit.data.collate import batch_shape, collate
from detkit.data.dataset import ImageDataset
from detkit.data.proposal_folder import ProposalFolder
from detkit.data.repeat_factors import repeat_factors
from detkit.data.sampler import BatchSampler, Key
from detkit.data.transfer import BufferPool, SentBatch
from detkit.data.transforms import Augment
from detkit.structures import COLUMNS, Batch, Clip, Column, ImageId, ImageInfo, Objects, Sample, Size

Place = Callable[[ImageId, Size, int | None], ImageInfo]  # a detector's resize rule: (id, (h, w) of the picture, draw)


class LoaderConfig(Config):
    """Settings of the loader.

    workers           processes that decode and augment beside the training; 0: none
    aspect_grouping   batches hold only upright or only wide images, which saves padding
    repeat_threshold  share of the images; images of a class that fewer show come more often (repeat factors of LVIS,
                      arXiv 1908.03195, where it is 0.001): by sqrt(repeat_threshold / share); null: off
    draft             training decodes a JPEG at a half, a quarter or an eighth of its size if that divides its sides
                      and still has twice the height and width of the detector's input: much faster for photographs
                      of many megapixels, whose pixels are then a little smoother than in evaluation
    proposals         folder for the proposals of detectors that are given them; null: `proposals` in the folder of the
                      data, or in the user's cache where one cannot write there
    """

    at_test: ClassVar[tuple[str, ...]] = ("workers", "proposals")

    workers: int = Field(2, ge=0)
    aspect_grouping: bool = True
    repeat_threshold: float | None = Field(None, gt=0, le=1)
    draft: bool = False
    proposals: PathText | None = None


def build_loader(
    dataset: ImageDataset,
    *,
    place: Place,
    stride: int,
    batch_size: int,
    augment: Augment | None,
    seed: int,
    workers: int,
    shuffle: bool,
    aspect_grouping: bool,
    rank: int = 0,
    world_size: int = 1,
    with_targets: bool,
    draw_every: int = 1,
    proposals: ProposalFolder | None = None,
    repeat_threshold: float | None = None,
    draft: bool = False,
    columns: Collection[Column] = COLUMNS,
    clip: Clip | None = None,
) -> Loader[Batch]:
    """Batches of `batch_size` images on each of `world_size` ranks; call `loader.set_epoch` before every epoch.

    place, stride     the detector's resize rule, and the multiple to which batches are padded
    augment           applied to every image before it is resized; None in evaluation
    seed              of the order, the augmentation and the draws
    shuffle           training: a new order every epoch, and a `draw` for `place`; else the order of the data set
    aspect_grouping   batches of only upright or only wide images, if `shuffle`
    with_targets      whether batches carry the objects
    draw_every        batches that share a draw; 0: each image has its own
    proposals         of every image, for detectors with external proposals
    repeat_threshold  as in `LoaderConfig`, if `shuffle`
    draft             as in `LoaderConfig`
    columns           what the objects of the batches have beside boxes, where the data have it
    clip              the frames around each image that its detector takes; None: the image alone
    """
    sampler = BatchSampler(
        dataset.aspect_ratios,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        aspect_grouping=aspect_grouping,
        rank=rank,
        world_size=world_size,
        draw_every=draw_every,
        repeats=repeat_factors(dataset, repeat_threshold) if repeat_threshold else None,
    )
    pool = BufferPool(workers)
    batches = Batches(dataset, augment, proposals, place, stride, with_targets, pool, draft, columns, clip)
    return Loader(batches, sampler, workers=workers, pin_memory=torch.cuda.is_available())


class Batches:
    """`batches(keys)` is the batch of these images, decoded, augmented, resized and collated."""

    def __init__(
        self,
        dataset: ImageDataset,
        augment: Augment | None,
        proposals: ProposalFolder | None,
        place: Place,
        stride: int,
        with_targets: bool,
        pool: BufferPool,
        draft: bool,
        columns: Collection[Column] = COLUMNS,
        clip: Clip | None = None,
    ) -> None:
        self.clip = clip
        self.augment, self.proposals = augment, proposals
        self.place, self.stride, self.with_targets, self.pool = place, stride, with_targets, pool
        self.draft = draft
        self.columns = frozenset(columns if with_targets else ())
        # Masks at which nobody looks need not become pixels.
        self.dataset = copy.copy(dataset)
        self.dataset.objects = _with_columns(dataset.objects, self.columns.union(augment.uses if augment else ()))

    def __call__(self, keys: list[Key]) -> Batch | SentBatch:
        prepared = [self._prepare(key) for key in keys]
        items, interpolations = [item[:2] for item in prepared], [item[2] for item in prepared]
        if get_worker_info() is None:
            return collate(items, self.stride, self.with_targets, interpolations)
        memory, slot = self.pool.take(batch_shape(items, self.stride))
        return SentBatch(collate(items, self.stride, self.with_targets, interpolations, memory), slot)

    def _prepare(self, key: Key) -> tuple[Sample, ImageInfo, int]:
        """The augmented sample, where it comes to lie on its input, and the interpolation of that resize."""
        try:
            sample, interpolation = self._load(key.image), cv2.INTER_LINEAR
            if self.augment is not None:
                sample = self.augment(sample, key.seed, key.epoch, self._others)
                interpolation = self.augment.interpolation(key.seed, key.epoch)
            sample = replace(sample, objects=_with_columns(sample.objects, self.columns))
            return sample, self.place(sample.image_id, sample.size, key.draw), interpolation
        except (UserError, MemoryError):
            raise
        except Exception as error:
            raise RuntimeError(f"{self.dataset.path(key.image)}: {type(error).__name__}: {error}") from error

    def _load(self, index: int) -> Sample:
        at_least = None
        if self.draft:
            truth = self.dataset.ground_truth(index)
            height, width = self.place(truth.image_id, truth.size, None).input_size
            at_least = (2 * height, 2 * width)
        proposals = None if self.proposals is None else self.proposals.load(self.dataset.path(index))
        return self.dataset.load(index, at_least, proposals, self.clip)

    def _others(self, rng: np.random.Generator, count: int) -> list[Sample]:
        """Any images of the data set, as they are, for augmentations that mix several."""
        return [self._load(index) for index in rng.integers(len(self.dataset), size=count).tolist()]


def _with_columns(objects: Objects[np.ndarray], columns: Collection[Column]) -> Objects[np.ndarray]:
    """Without those of `COLUMNS` that are not among `columns`."""
    unneeded: dict[str, Any] = {
        name: None for name in COLUMNS if name not in columns and getattr(objects, name) is not None
    }
    return replace(objects, **unneeded) if unneeded else objects


ItemT = TypeVar("ItemT", covariant=True)


class Loader(DataLoader[ItemT]):
    """`function(key)` for every key of `keys`, in their order, computed in `workers` processes of one thread each.

    Without workers this process does it. A UserError of `function` is raised here as it was raised there, and a worker
    that dies is a UserError too; torch would raise a new exception in place of a worker's, with a stack trace as its
    message.
    """

    def __init__(
        self, function: Callable[[Any], Any], keys: Iterable[Any], *, workers: int, pin_memory: bool = False
    ) -> None:
        super().__init__(
            _Results(function),  # type: ignore[arg-type]
            sampler=keys,
            batch_size=None,  # a key is sent to a worker as it is
            collate_fn=_unchanged,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_init_worker,
            pin_memory=pin_memory,
            # Without its own generator, the loader takes a number from the global one in every epoch.
            generator=torch.Generator().manual_seed(0),
        )

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Before a pass, if `keys` is a sampler that gives others in every epoch; the first `start` are left out."""
        self.sampler.set_epoch(epoch, start)  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[ItemT]:  # type: ignore[override]
        try:
            if self.num_workers and self._iterator is None:
                # More locks than torch is about to make: it leaves a stack trace if it fails half way.
                [multiprocessing.Lock() for _ in range(4 * (self.num_workers + 2))]
            with _forking():
                items = super().__iter__()
        except OSError as error:  # no room for a semaphore in /dev/shm, no more processes or files
            raise UserError(
                f"the workers of the loader cannot be started: {error.strerror}; {SHARED_MEMORY}"
            ) from error
        if self.num_workers and threading.current_thread() is threading.main_thread():
            _explain_dead_workers()
        try:
            for item in items:
                if isinstance(item, UserError):
                    raise item
                yield item
        except Exception as error:
            # The workers end now: the frames of the error would keep them alive, some seconds longer than itself.
            traceback.clear_frames(error.__traceback__)
            del items
            self._iterator = None
            if str(error).startswith(DEAD_WORKER):
                raise _explained(error) from error
            raise


class _Results:
    """What torch takes for a data set: its item `key` is `function(key)`, or the UserError that it raised."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.function(key)
        except UserError as error:
            return error
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            return UserError(f"out of memory while a batch was loaded; {LESS_MEMORY}")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error is numpy's, PyTorch's or Python's that there is no memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _unchanged(item: Any) -> Any:
    return item


@contextmanager
def _forking() -> Iterator[None]:
    """A block in which workers are forked: without garbage collection until `_init_worker`, and with SIGTERM blocked,
    which the threads inherit that torch starts in a forked process; see `_end_with`."""
    collects = gc.isenabled()
    gc.disable()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) if CAN_WAIT else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if collects:
            gc.enable()


def _init_worker(_: int) -> None:
    gc.freeze()  # a worker that collected the garbage of the training could wait for threads that it has not
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the training process ends its workers
    _end_with(os.getppid())
    cv2.setNumThreads(0)  # a worker is one thread; more would compete with the other workers
    torch.set_num_threads(1)


def _end_with(training: int) -> None:
    """Only a SIGTERM of the process `training` ends this worker: a scheduler may send it to all, and the training then
    still needs its workers to finish the step."""
    if not CAN_WAIT:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != training:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()


CAN_WAIT = hasattr(signal, "sigwaitinfo")  # for a signal, and know who sent it; not on macOS
DEAD_WORKER = "DataLoader worker"  # how torch's messages of one begin
LESS_MEMORY = "set loader.workers or train.batch_size lower"
SHARED_MEMORY = "set loader.workers=0, or give the container more shared memory (docker run --shm-size=1g)"


def _explained(error: Exception) -> UserError:
    """torch's error of a dead worker as one line for the user."""
    text = str(error).splitlines()[0].strip()
    if isinstance(error.__cause__, UserError):  # raised by `explain` below, while torch waited for the worker
        return UserError(str(error.__cause__))
    if "Killed" in text:
        return UserError(f"a worker of the loader was killed, as a system does when its memory runs out; {LESS_MEMORY}")
    if "Bus error" in text:
        return UserError(f"a worker of the loader ended, as shared memory is full; {SHARED_MEMORY}")
    return UserError(f"a worker of the loader ended: {text}; loader.workers=0 shows why")


@cache
def _explain_dead_workers() -> None:
    """Once in a process: torch raises its error in a signal handler, wherever the training is at that moment."""
    handler = signal.getsignal(signal.SIGCHLD)
    if not callable(handler):
        return

    def explain(number: int, frame: Any) -> None:
        try:
            handler(number, frame)
        except RuntimeError as error:
            raise _explained(error) from error

    signal.signal(signal.SIGCHLD, explain)

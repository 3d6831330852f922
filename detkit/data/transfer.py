"""How a batch leaves its worker: the images in shared memory that is used again and again, everything else pickled.

torch gives every tensor of a batch its own new shared memory: the pages of a large batch are cleared by the worker and
mapped by the training process once for every batch, which takes longer than decoding its pictures. Here a worker has a
few buffers. One is taken for the images of a batch, and is free again when the training process has dropped the last
tensor that shares its memory. A buffer is a file in memory without a name (memfd), so it needs no room in /dev/shm, of
which a Docker container has 64 MB. Where a system has no such files, images are pickled like the rest.
"""

from __future__ import annotations

import itertools
import math
import mmap
import multiprocessing
import os
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from detkit.structures import Batch, ImageInfo, Objects, Target

if TYPE_CHECKING:  # only where there are file descriptors
    from multiprocessing.resource_sharer import DupFd

NUM_BUFFERS = 5  # of a worker: two batches under way (torch's prefetch_factor), two in training, one in reserve
Shape = tuple[int, ...]
_POOLS: weakref.WeakValueDictionary[int, BufferPool] = weakref.WeakValueDictionary()  # of the training process
_KEYS = itertools.count()


class Slot(NamedTuple):
    """Where images lie: in a buffer of a pool. `file` is the buffer's, if the training process does not have it yet."""

    pool: int
    buffer: int
    file: DupFd | None


class BufferPool:
    """The buffers of the workers of one loader; worker w has those from `w * NUM_BUFFERS` on.

    Both sides have such a pool, with the same buffers mapped into their memory.
    """

    def __init__(self, workers: int) -> None:
        self.key = next(_KEYS)  # in `_POOLS`
        # 1 from when a worker takes the buffer until the training process is done with its batch.
        self.taken = multiprocessing.RawArray("B", max(1, workers * NUM_BUFFERS))
        self.buffers: dict[int, np.ndarray] = {}  # uint8 [bytes]
        _POOLS[self.key] = self

    def __getstate__(self) -> dict[str, Any]:
        """Pickled for workers that are not forked: they begin without buffers."""
        return {**self.__dict__, "buffers": {}}

    def take(self, shape: Shape) -> tuple[np.ndarray, Slot | None]:
        """Called in a worker: uint8 memory of `shape`, and which buffer it is; None: of no buffer, as none is free."""
        worker, num_bytes = get_worker_info(), math.prod(shape)
        assert worker is not None
        own = range(worker.id * NUM_BUFFERS, (worker.id + 1) * NUM_BUFFERS)
        buffer = next((number for number in own if not self.taken[number]), None)
        if buffer is None:
            return np.empty(shape, np.uint8), None
        file = None
        if buffer not in self.buffers or self.buffers[buffer].size < num_bytes:
            try:
                self.buffers[buffer], file = _new_buffer(num_bytes)
            except (OSError, AttributeError, ImportError):  # too many open files, or a system without memfd
                return np.empty(shape, np.uint8), None
        self.taken[buffer] = 1
        return self.buffers[buffer][:num_bytes].reshape(shape), Slot(self.key, buffer, file)

    def images(self, slot: Slot, shape: Shape) -> np.ndarray:
        """Called in the training process: those of `shape` at `slot`, whose buffer is free when nothing has them."""
        if slot.file is not None:
            self.buffers[slot.buffer] = _map_file(slot.file.detach())
        images = self.buffers[slot.buffer][: math.prod(shape)].reshape(shape)
        weakref.finalize(images, self.taken.__setitem__, slot.buffer, 0).atexit = False
        return images


class SentBatch:
    """A batch in a worker, whose images are at `slot`: where it arrives, it is unpickled as a `Batch`."""

    def __init__(self, batch: Batch, slot: Slot | None) -> None:
        self.batch, self.slot = batch, slot

    def __reduce__(self) -> tuple[Any, ...]:
        """Arrays, not tensors: those are pickled, where torch would share the memory of each tensor."""
        batch = self.batch
        images = batch.images.movedim(1, -1)
        sent = images.numpy() if self.slot is None else (self.slot, tuple(images.shape))
        objects = batch.targets and [target.objects.to_arrays() for target in batch.targets]
        proposals = batch.proposals and [boxes.numpy() for boxes in batch.proposals]
        return _receive, (sent, batch.infos, objects, proposals)


def _receive(
    sent: np.ndarray | tuple[Slot, Shape],
    infos: tuple[ImageInfo, ...],
    objects: list[Objects[np.ndarray]] | None,
    proposals: list[np.ndarray] | None,
) -> Batch:
    images = _POOLS[sent[0].pool].images(*sent) if isinstance(sent, tuple) else sent
    return Batch(
        torch.from_numpy(images).movedim(-1, 1),
        infos,
        None if objects is None else tuple(Target(columns.to_tensors()) for columns in objects),
        None if proposals is None else tuple(map(torch.from_numpy, proposals)),
    )


def _new_buffer(num_bytes: int) -> tuple[np.ndarray, DupFd]:
    """uint8 `[num_bytes]`, and the file with which another process maps the same memory."""
    from multiprocessing.resource_sharer import DupFd

    file = os.memfd_create("detkit")
    try:
        os.ftruncate(file, num_bytes)
        return _map_file(os.dup(file)), DupFd(file)
    finally:
        os.close(file)


def _map_file(file: int) -> np.ndarray:
    """uint8: the whole of an open file as memory; closes it, which leaves the memory."""
    try:
        return np.frombuffer(mmap.mmap(file, 0), np.uint8)
    finally:
        os.close(file)

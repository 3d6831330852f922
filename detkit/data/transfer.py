"""Collating in the workers of a loader, in shared memory that is reused.

torch gives every tensor of a batch its own new shared memory: the pages of a large batch are cleared by the worker and
mapped by the training process once for every batch, which takes longer than decoding its pictures. Here a worker has a
few buffers. One is taken for the images of a batch, and is free again when the training process has dropped the last
tensor that shares its memory. Everything else is small and is pickled.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from detkit.data.collate import collate
from detkit.structures import Batch, ImageInfo, Objects, Sample, Target

NUM_BUFFERS = 5  # of a worker: two batches under way (torch's prefetch_factor), two in training, one in reserve
_POOLS: weakref.WeakValueDictionary[int, CollateInWorker] = weakref.WeakValueDictionary()
_KEYS = itertools.count()


class CollateInWorker:
    """`collate` for a loader of `workers` processes; without a worker it is `collate` itself.

    A batch leaves its worker as `_Parcel` and is a `Batch` again when it is unpickled. If no buffer is free, because
    earlier batches are still in use, the images are sent as torch sends every tensor.
    """

    def __init__(self, stride: int, with_targets: bool, workers: int) -> None:
        self.stride, self.with_targets = stride, with_targets
        self.key = next(_KEYS)  # of this object in the `_POOLS` of the training process
        # [workers, buffers]: 1 from when a worker takes a buffer until the training process is done with its batch
        self.taken = torch.zeros(workers, NUM_BUFFERS, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self.buffers: dict[tuple[int, int], np.ndarray] = {}  # (worker, buffer) -> uint8 [bytes], in either process
        _POOLS[self.key] = self

    def __getstate__(self) -> dict[str, Any]:
        """Pickled for workers that are not forked: they begin without buffers."""
        return {**self.__dict__, "buffers": {}}

    def __call__(self, prepared: Sequence[tuple[Sample, ImageInfo, int]]) -> Batch:
        """The batch of samples that are still to be resized, each with its interpolation."""
        items, interpolations = [item[:2] for item in prepared], [item[2] for item in prepared]
        worker = get_worker_info()
        if worker is None:
            return collate(items, self.stride, self.with_targets, interpolations)
        key, memory = None, None

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            nonlocal key, memory
            free = torch.nonzero(self.taken[worker.id] == 0).flatten().tolist()
            if not free:
                return np.empty(shape, np.uint8)
            key = (worker.id, free[0])
            self.taken[key] = 1
            if key not in self.buffers or self.buffers[key].size < math.prod(shape):
                memory = torch.empty(math.prod(shape), dtype=torch.uint8)
                memory.share_memory_()  # type: ignore[no-untyped-call]
                self.buffers[key] = memory.numpy()
            return self.buffers[key][: math.prod(shape)].reshape(shape)

        batch = collate(items, self.stride, self.with_targets, interpolations, allocate)
        return _Parcel(batch, self.key, key, memory)  # type: ignore[return-value]  # a Batch when it arrives

    def images(self, key: tuple[int, int], memory: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """uint8 `[B, H, W, 3]` in the buffer `key`, which is free again when no tensor shares its memory any more."""
        if memory is not None:
            self.buffers[key] = memory.numpy()
        view = self.buffers[key][: math.prod(shape)].reshape(shape)
        weakref.finalize(view, self.taken[key].zero_).atexit = False  # the storage of the tensor holds the view
        return torch.from_numpy(view)


class _Parcel:
    """A batch in a worker.

    pool    the key of its `CollateInWorker`
    buffer  its worker and buffer; None: its images are not in a buffer
    memory  the buffer, if the training process does not have it yet
    """

    def __init__(self, batch: Batch, pool: int, buffer: tuple[int, int] | None, memory: Tensor | None) -> None:
        self.batch, self.pool, self.buffer, self.memory = batch, pool, buffer, memory

    def __reduce__(self) -> tuple[Any, ...]:
        """Objects and proposals go as arrays: those are pickled, where torch would share the memory of each tensor."""
        batch = self.batch
        images = batch.images.permute(0, 2, 3, 1)
        sent = images if self.buffer is None else (self.pool, self.buffer, self.memory, tuple(images.shape))
        objects = batch.targets and [target.objects.to_arrays() for target in batch.targets]
        proposals = batch.proposals and [boxes.numpy() for boxes in batch.proposals]
        return _unpack, (sent, batch.infos, objects, proposals)


def _unpack(
    sent: Tensor | tuple[int, tuple[int, int], Tensor | None, tuple[int, ...]],
    infos: tuple[ImageInfo, ...],
    objects: list[Objects[np.ndarray]] | None,
    proposals: list[np.ndarray] | None,
) -> Batch:
    if isinstance(sent, Tensor):
        images = sent
    else:
        pool, buffer, memory, shape = sent
        images = _POOLS[pool].images(buffer, memory, shape)
    return Batch(
        images.permute(0, 3, 1, 2),
        infos,
        None if objects is None else tuple(Target(columns.to_tensors()) for columns in objects),
        None if proposals is None else tuple(map(torch.from_numpy, proposals)),
    )

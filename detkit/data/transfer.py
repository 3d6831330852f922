"""Collating in the workers of a loader, in shared memory that is used again.

torch gives every tensor of a batch its own new shared memory: the pages of a large batch are cleared by the worker and
mapped by the training once for every batch, which takes longer than decoding its pictures. Here a worker keeps a few
buffers. One is taken for the images of a batch, and is free again when the training has dropped the last tensor that
looks into it. What is small is pickled.
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
from detkit.structures import Batch, ImageInfo, Sample, Target

NUM_BUFFERS = 5  # of a worker: two batches under way (torch's prefetch_factor), two in the training, one to spare
_POOLS: weakref.WeakValueDictionary[int, CollateInWorker] = weakref.WeakValueDictionary()
_KEYS = itertools.count()


class CollateInWorker:
    """`collate` for a loader of `workers` processes; without a worker it is `collate` itself.

    A batch leaves its worker as `_Parcel` and is a `Batch` again when it is unpickled. One for which no buffer is free,
    because the batches before it are all kept, goes the ordinary way of torch.
    """

    def __init__(self, stride: int, with_targets: bool, workers: int) -> None:
        self.stride, self.with_targets = stride, with_targets
        self.key = next(_KEYS)  # in `_POOLS` of the training
        # [workers, buffers]: 1 from when a worker takes a buffer until the training is done with the batch in it
        self.taken = torch.zeros(workers, NUM_BUFFERS, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self.buffers: dict[tuple[int, int], np.ndarray] = {}  # (worker, buffer) -> uint8 [bytes], on either side
        _POOLS[self.key] = self

    def __getstate__(self) -> dict[str, Any]:
        """Where workers are not forked they are sent this, and begin with buffers of their own."""
        return {**self.__dict__, "buffers": {}}

    def __call__(self, prepared: Sequence[tuple[Sample, ImageInfo, int]]) -> Batch:
        """Of samples that are still to be resized, each with its interpolation."""
        items, interpolations = [(sample, info) for sample, info, _ in prepared], [how for _, _, how in prepared]
        worker = get_worker_info()
        if worker is None:
            return collate(items, self.stride, self.with_targets, interpolations)
        place, memory = None, None

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            nonlocal place, memory
            free = torch.nonzero(self.taken[worker.id] == 0).flatten().tolist()
            if not free:
                return np.empty(shape, np.uint8)
            place = (worker.id, free[0])
            self.taken[place] = 1
            if place not in self.buffers or self.buffers[place].size < math.prod(shape):
                memory = torch.empty(math.prod(shape), dtype=torch.uint8)
                memory.share_memory_()  # type: ignore[no-untyped-call]
                self.buffers[place] = memory.numpy()
            return self.buffers[place][: math.prod(shape)].reshape(shape)

        batch = collate(items, self.stride, self.with_targets, interpolations, allocate)
        return _Parcel(batch, self.key, place, memory)  # type: ignore[return-value]  # a Batch when it arrives

    def images(self, place: tuple[int, int], memory: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """uint8 `[B, H, W, 3]` in the buffer at `place`, which is free again when no tensor shares it any more."""
        if memory is not None:
            self.buffers[place] = memory.numpy()
        view = self.buffers[place][: math.prod(shape)].reshape(shape)
        weakref.finalize(view, self.taken[place].zero_).atexit = False  # the storage of the tensor holds the view
        return torch.from_numpy(view)


class _Parcel:
    """A batch in a worker.

    place   its worker and buffer; None: its images lie elsewhere
    memory  the buffer if the training does not have it yet
    """

    def __init__(self, batch: Batch, key: int, place: tuple[int, int] | None, memory: Tensor | None) -> None:
        self.batch, self.key, self.place, self.memory = batch, key, place, memory

    def __reduce__(self) -> tuple[Any, ...]:
        batch = self.batch
        images = batch.images.permute(0, 2, 3, 1)
        targets = batch.targets and [(t.boxes.numpy(), t.labels.numpy(), t.ignore.numpy()) for t in batch.targets]
        proposals = batch.proposals and [boxes.numpy() for boxes in batch.proposals]
        sent = images if self.place is None else (self.key, self.place, self.memory, tuple(images.shape))
        return _unpack, (sent, batch.infos, targets, proposals)


def _unpack(
    sent: Tensor | tuple[int, tuple[int, int], Tensor | None, tuple[int, ...]],
    infos: tuple[ImageInfo, ...],
    targets: list[tuple[np.ndarray, np.ndarray, np.ndarray]] | None,
    proposals: list[np.ndarray] | None,
) -> Batch:
    if isinstance(sent, Tensor):
        images = sent
    else:
        key, place, memory, shape = sent
        images = _POOLS[key].images(place, memory, shape)
    return Batch(
        images.permute(0, 3, 1, 2),
        infos,
        None if targets is None else tuple(Target(*map(torch.from_numpy, arrays)) for arrays in targets),
        None if proposals is None else tuple(map(torch.from_numpy, proposals)),
    )

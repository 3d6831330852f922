"""Which images come when: the order of an epoch, its batches, and the seed of each image.

Every random decision about an image is a function of (run seed, epoch, image), and every one about a batch of (run
seed, epoch, batch): the number of worker processes changes nothing, and an epoch can be repeated or resumed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Key(NamedTuple):
    """One image of a batch.

    image  its index in the data set
    seed   of its augmentation
    draw   a random number for the resize rule, which images of a batch may share; None: nothing is drawn
    epoch  from 0
    """

    image: int
    seed: int
    draw: int | None
    epoch: int


class BatchSampler(Sampler[list[Key]]):
    """Lists of keys, a list a batch, reproducible from (seed, epoch).

    Batches of `batch_size * world_size` images are formed first, of one orientation if `aspect_grouping` and `shuffle`.
    Rank r takes every `world_size`-th image from the r-th on, so all ranks together see what one alone would see. The
    last batch of an orientation may be smaller; one with fewer images than ranks repeats some, so that none goes idle.

    repeats  float `[I]`, at least 1: how often each image comes in an epoch, on average; only if `shuffle`. An image
             that comes twice is augmented in two ways
    """

    def __init__(
        self,
        aspect_ratios: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        aspect_grouping: bool,
        rank: int = 0,
        world_size: int = 1,
        draw_every: int = 1,
        repeats: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"expected batch_size >= 1 and 0 <= rank < world_size, got {batch_size=} {rank=} {world_size=}"
            )
        wide = aspect_ratios >= 1
        indices = np.arange(len(aspect_ratios))
        self.groups = [indices[wide], indices[~wide]] if aspect_grouping and shuffle else [indices]
        self.repeats = repeats if shuffle else None
        self.global_size = batch_size * world_size
        self.seed, self.shuffle, self.rank, self.world_size = seed, shuffle, rank, world_size
        self.draw_every = draw_every
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """`start`: batches of the epoch that are done, and not given again. `len` counts them all the same."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return sum(-(-self._group_size(group) // self.global_size) for group in self.groups)

    def __iter__(self) -> Iterator[list[Key]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = self._global_batches(rng)
        draws = rng.integers(2**31, size=len(batches)).tolist() if self.shuffle else [None] * len(batches)
        for number, batch in enumerate(batches[self.start :], self.start):
            if len(batch) < self.world_size:
                batch = np.resize(batch, (self.world_size, 2))
            seeds = [
                (image, self._seed_of(image, copy)) for image, copy in batch[self.rank :: self.world_size].tolist()
            ]
            if self.draw_every:
                draw = draws[number // self.draw_every]
                yield [Key(image, seed, draw, self.epoch) for image, seed in seeds]
            else:
                yield [Key(image, seed, seed if self.shuffle else None, self.epoch) for image, seed in seeds]

    def _global_batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        """int64 `[n, 2]` for each batch: (image, copy) for each of its images; one that comes once is copy 0."""
        batches = []
        for group in self.groups:
            entries = self._entries(group, rng)
            order = rng.permutation(entries) if self.shuffle else entries
            batches += [order[start : start + self.global_size] for start in range(0, len(order), self.global_size)]
        if self.shuffle:
            batches = [batches[number] for number in rng.permutation(len(batches))]
        return batches

    def _entries(self, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int64 `[n, 2]`: (image, copy) of all that an epoch has of this group, in its order."""
        if self.repeats is None:
            return np.stack([group, np.zeros_like(group)], axis=1)
        counts = systematic_counts(self.repeats[group], rng)
        copies = np.concatenate([np.arange(count) for count in counts]) if len(counts) else counts
        return np.stack([np.repeat(group, counts), copies], axis=1)

    def _group_size(self, group: np.ndarray) -> int:
        return len(group) if self.repeats is None else _total(self.repeats[group])

    def _seed_of(self, image: int, copy: int) -> int:
        place = (self.seed, self.epoch, image, copy) if copy else (self.seed, self.epoch, image)
        return int(np.random.SeedSequence(place).generate_state(1)[0])


def systematic_counts(expected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 `[n]`: each number of `expected` rounded up or down at random, itself on average, to a sum that is fixed.

    If each were rounded alone, epochs would differ in length, and the schedule needs to know it beforehand. So the
    numbers are laid end to end on a line, in a random order, and each gets as many of the points u, u + 1, u + 2, ...
    as lie on its part, where u is drawn from [0, 1) (systematic sampling). Before that all are stretched by the little
    that makes their sum a whole number.
    """
    total = _total(expected)
    order = rng.permutation(len(expected))
    ends = np.cumsum(expected[order])
    ends *= total / max(ends[-1:].sum(), 1)
    points = np.ceil(ends - rng.random()).astype(np.int64)  # that lie before each end
    points[-1:] = total  # the last end may be rounded
    counts = np.empty(len(expected), np.int64)
    counts[order] = np.diff(points, prepend=0)
    return counts


def _total(expected: np.ndarray) -> int:
    """The sum rounded up; a millionth above a whole number is rounding."""
    return math.ceil(float(expected.sum()) - 1e-6)

"""Which images come when: the order of an epoch, its batches, and the seed of each image.

Every random decision about an image is a function of (run seed, epoch, index), and every one about a batch of (run
seed, epoch, batch): the number of worker processes changes nothing, and an epoch can be repeated or resumed exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int, int | None]  # (index of the image, its seed, its draw, which its batch may share)


class BatchSampler(Sampler[list[Key]]):
    """Lists of keys, a list a batch, reproducible from (seed, epoch).

    Batches of `batch_size * world_size` images are formed first, of one orientation if `aspect_grouping` and `shuffle`.
    Rank r takes every `world_size`-th image from the r-th on, so all ranks together see what one alone would see. The
    last batch of an orientation may be smaller; one with fewer images than ranks repeats some, so that none goes idle.
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
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"expected batch_size >= 1 and 0 <= rank < world_size, got {batch_size=} {rank=} {world_size=}"
            )
        wide = aspect_ratios >= 1
        indices = np.arange(len(aspect_ratios))
        self.groups = [indices[wide], indices[~wide]] if aspect_grouping and shuffle else [indices]
        self.global_size = batch_size * world_size
        self.seed, self.shuffle, self.rank, self.world_size = seed, shuffle, rank, world_size
        self.draw_every = draw_every
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(group) // self.global_size) for group in self.groups)

    def __iter__(self) -> Iterator[list[Key]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = self._global_batches(rng)
        draws = rng.integers(2**31, size=len(batches)).tolist() if self.shuffle else [None] * len(batches)
        for number, batch in enumerate(batches):
            if len(batch) < self.world_size:
                batch = np.resize(batch, self.world_size)
            keys = [(index, self._seed_of(index)) for index in batch[self.rank :: self.world_size].tolist()]
            if self.draw_every:
                draw = draws[number // self.draw_every]
                yield [(index, seed, draw) for index, seed in keys]
            else:
                yield [(index, seed, seed if self.shuffle else None) for index, seed in keys]

    def _global_batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        batches = []
        for group in self.groups:
            order = rng.permutation(group) if self.shuffle else group
            batches += [order[start : start + self.global_size] for start in range(0, len(order), self.global_size)]
        if self.shuffle:
            batches = [batches[number] for number in rng.permutation(len(batches))]
        return batches

    def _seed_of(self, index: int) -> int:
        return int(np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0])

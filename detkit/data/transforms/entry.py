"""What every change of an augmentation has: when it happens, and what it draws from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from detkit.config import Config
from detkit.structures import Column, Sample

Others = Callable[[np.random.Generator, int], list[Sample]]  # (generator, count) -> so many samples, not augmented


@dataclass(frozen=True)
class Draws:
    """What the changes of one sample draw from.

    rng         the one generator of the sample, from which entry after entry takes its numbers
    pictures    draws further samples of the data set; None: there are none
    flip_pairs  pairs of keypoints that change places when the picture is mirrored
    """

    rng: np.random.Generator
    pictures: Others | None = None
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def others(self, count: int) -> list[Sample]:
        """`count` samples of the data set, as they are before augmentation. Raises ValueError if there are none."""
        if self.pictures is None:
            raise ValueError("this augmentation mixes several pictures: call augment(sample, seed, epoch, others)")
        return self.pictures(self.rng, count)


class Transform(Config):
    """One entry of the list `augment`.

    probability  that it happens, drawn for each image; null: it always does, and no number is drawn for that
    until_epoch  the first epoch (counted from 0) without it; -15: off for the last 15 epochs; null: never off

    mixes        whether it takes other samples of the data set
    uses         what of objects it looks at beside boxes, where the data have it
    """

    mixes: ClassVar[bool] = False
    uses: ClassVar[tuple[Column, ...]] = ()

    name: str
    probability: float | None = Field(None, ge=0, le=1)
    until_epoch: int | None = None

    def prepare(self) -> None:
        """Called once, before loaders fork their workers."""

    def apply(self, sample: Sample, draws: Draws) -> Sample:
        """The changed sample, without touching the one given."""
        raise NotImplementedError

    def happens(self, epoch: int, epochs: int | None, rng: np.random.Generator) -> bool:
        """Whether it is on in this epoch of `epochs`, and its probability drawn."""
        if self.until_epoch is not None:
            end = self.until_epoch if self.until_epoch >= 0 else (epochs or 0) + self.until_epoch
            if epoch >= end:
                return False
        return self.probability is None or rng.random() < self.probability

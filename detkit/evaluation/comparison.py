"""Whether one of two detectors is better on the same images, or luck: bootstrap over images.

Legend: I images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A difference, second minus first, and the interval that holds 95 % of its resamples; nan without an object."""

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds 0, so that these images do not tell which one is better."""
        return not (self.low > 0 or self.high < 0)


@dataclass(frozen=True, eq=False)
class Comparison:
    """
    first, second  the score of each on all images
    overall        difference of the scores
    per_class      difference of AP by class name
    rules          what the score is, in one line
    resamples      how many times the images were drawn, with replacement
    seed           of the drawing
    gains          int64 `[I]`: objects that only the second detects, less those that only the first does, by image
    """

    first: float
    second: float
    overall: Interval
    per_class: dict[str, Interval]
    rules: str
    resamples: int
    seed: int
    gains: np.ndarray

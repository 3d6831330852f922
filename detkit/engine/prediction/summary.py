"""What a prediction did, for the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, TypeVar

from detkit.data.dataset import plural
from detkit.engine.prediction.frames import Fault, Frame
from detkit.engine.prediction.media import LeftOut
from detkit.structures import Detections

T = TypeVar("T")
Stage = Literal["reading", "detecting", "writing"]

MAX_LINES = 10  # of one kind


@dataclass
class Summary:
    """
    classes    detections by name of the class
    notes      what was unusual, of which some are shown
    data_sets  what the writers of data sets report, all of which is shown
    seconds    that each stage worked; they do so side by side
    wall       s from the first picture to the last
    """

    num_pictures: int = 0
    num_frames: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data_sets: list[str] = field(default_factory=list)
    seconds: dict[Stage, float] = field(default_factory=lambda: {"reading": 0.0, "detecting": 0.0, "writing": 0.0})
    wall: float = 0.0

    def add(self, frame: Frame, detections: Detections) -> None:
        self.num_pictures += frame.index is None
        self.num_frames += frame.index is not None
        names = detections.categories.names
        self.classes.update(names[label] for label in detections.labels.tolist())

    def timed(self, stage: Stage, items: Iterator[T]) -> Iterator[T]:
        """The items; the time in which each is computed is added to that of `stage`."""
        while True:
            start = perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.seconds[stage] += perf_counter() - start
            yield item

    def lines(self) -> list[str]:
        """What was done, where the time went, and what was left out."""
        units = [
            plural(number, noun)
            for number, noun in ((self.num_pictures, "picture"), (self.num_frames, "frame"))
            if number
        ]
        listed = ", ".join(f"{name} {number:,}" for name, number in self.classes.most_common(MAX_LINES))
        if len(self.classes) > MAX_LINES:
            listed += f", {len(self.classes) - MAX_LINES} other classes"
        detections = plural(sum(self.classes.values()), "detection") + (f" ({listed})" if listed else "")
        lines = [f"{' and '.join(units) or 'no picture'}: {detections}"]
        if done := self.num_pictures + self.num_frames:
            stages = ", ".join(f"{stage} {1000 * time / done:.1f}" for stage, time in self.seconds.items())
            lines.append(
                f"{done / self.wall:.1f} a second in {self.wall:.1f} s; {1000 * self.wall / done:.1f} ms each, with "
                f"{stages} ms side by side"
            )
        left_out = [f"left out: {item.source}: {item.reason}" for item in self.left_out]
        return [*lines, *_shortened(self.notes), *self.data_sets, *_shortened(left_out)]

    def problem(self) -> str:
        """What could not be read, as the message of an error."""
        faults = _shortened([fault.message for fault in self.faults])
        head = f"{plural(len(self.faults), 'file')} could not be read as a whole, the rest is done"
        return "\n  ".join([f"{head}:", *faults])


def _shortened(lines: list[str]) -> list[str]:
    rest = len(lines) - MAX_LINES
    return lines if rest <= 1 else [*lines[:MAX_LINES], f"... and {rest} more like these"]

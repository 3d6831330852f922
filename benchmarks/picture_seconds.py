"""Seconds a picture of the detectors in the given runs, one picture at a time and in turn: proposals, then the rest.

python benchmarks/picture_seconds.py RUN [RUN ...] [--pictures N]      CUDA if there is one, else the CPU

The pictures are the first of the validation data of the first run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from detkit.data.build import build_dataset
from detkit.detectors.detector import Detector
from detkit.engine.predict import predict
from detkit.engine.proposal_search import ProposalSource, source_of
from detkit.engine.sources import load_detector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--pictures", type=int, default=20, help="timed, after one that is not counted")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = [load_detector(run) for run in options.runs]
    detectors = [detector.to(device) for detector, _ in loaded]
    config = loaded[0][1]
    assert config is not None
    dataset = build_dataset(config.data, "val")
    images = (dataset.load(index).image for index in range(min(options.pictures + 1, len(dataset))))
    print(f"{device}; torch {torch.__version__}; median seconds a picture of {options.pictures}\n")
    print("| detector | proposals | detection | both |\n|---|---|---|---|")
    for detector, (proposing, detecting) in zip(detectors, median_seconds(detectors, images), strict=True):
        both = proposing + detecting
        print(f"| {type(detector).__name__} | {proposing:.3f} | {detecting:.3f} | {both:.3f} |")


def median_seconds(
    detectors: Sequence[Detector], images: Iterable[np.ndarray], clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, float]]:
    """Of proposals and of detection on one of `images`, for each detector; the first image is not counted."""
    sources = [Timed(source, clock) if (source := source_of(detector)) else None for detector in detectors]
    seconds: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for index, image in enumerate(images):
        for number, (detector, source) in enumerate(zip(detectors, sources, strict=True)):
            times = one_picture(detector, source, image, clock)
            if index:
                seconds[number].append(times)
    medians = [tuple(statistics.median(column) for column in zip(*times, strict=True)) for times in seconds.values()]
    return [(proposing, detecting) for proposing, detecting in medians]


class Timed(ProposalSource):
    """A source, and the seconds it took the last time."""

    def __init__(self, source: ProposalSource, clock: Callable[[], float]) -> None:
        self.source, self.clock = source, clock

    def settings(self) -> dict[str, Any]:
        return self.source.settings()

    def of_picture(self, picture: np.ndarray) -> np.ndarray:
        start = self.clock()
        boxes = self.source.of_picture(picture)
        self.seconds = self.clock() - start
        return boxes


def one_picture(
    detector: Detector, source: Timed | None, image: np.ndarray, clock: Callable[[], float]
) -> tuple[float, float]:
    """Seconds for the proposals that the detector is given, and for all that it does itself."""
    start = clock()
    predict(detector, [image], proposals=source)
    both = clock() - start
    proposing = source.seconds if source else 0.0
    return proposing, both - proposing


if __name__ == "__main__":
    main()

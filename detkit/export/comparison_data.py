"""The pictures on which an exported file is compared with its detector: of the validation data, or drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np

from detkit.config import UserError
from detkit.data.build import build_dataset
from detkit.data.collate import canvas_size, collate
from detkit.data.dataset import ImageDataset, plural
from detkit.data.shapes_drawing import draw_picture
from detkit.detectors.detector import AnyDetector
from detkit.engine.proposal_search import proposals_for, source_of
from detkit.engine.settings import RunConfig
from detkit.export.canvas import fits
from detkit.export.metadata import Pictures
from detkit.structures import Batch, Objects, Sample, Size

BATCH_SIZES = (1, 2, 7)  # of the first batches; the others are as large as the last of these
DRAWN = ((480, 640), (640, 480))  # (h, w) px of drawn pictures, where they fit
DRAWN_SPEED = 4  # px a frame, of drawn clips


@dataclass(frozen=True, eq=False)
class ComparisonData:
    """
    samples  pictures in their own pixels, with proposals for a detector that is given them
    dataset  of exactly these pictures; None: they are drawn and have no labels
    label    what they are, for the report
    """

    samples: tuple[Sample, ...]
    dataset: ImageDataset | None
    label: str


def comparison_data(
    detector: AnyDetector,
    settings: RunConfig | None,
    count: int,
    *,
    canvas: Size | None,
    pictures: Pictures = "exact",
) -> ComparisonData:
    """The first `count` pictures of the validation data of `settings`, or as many drawn ones without settings.

    canvas    (h, w) px that the exported program takes: pictures that do not fit are left out; None: any
    pictures  what the program is given, see `Form`

    Raises UserError if no picture fits.
    """
    if settings is None:
        return _drawn(detector, count, canvas, pictures)
    dataset = build_dataset(settings.data, "val", columns=detector.columns)
    fitting = (i for i in range(len(dataset)) if _fits(detector, dataset.ground_truth(i).size, canvas, pictures))
    indices = list(islice(fitting, count))
    if not indices:
        _refuse(dataset.name, canvas)
    part = dataset.take(indices)
    workers, chosen = settings.loader.workers, settings.loader.proposals
    folder = proposals_for(detector, part, Path(settings.data.root), workers=workers, chosen=chosen)
    proposals = [folder.load(part.path(i)) if folder else None for i in range(len(part))]
    clip = detector.input.clip
    samples = tuple(part.load(i, proposals=boxes, clip=clip) for i, boxes in enumerate(proposals))
    return ComparisonData(samples, part, f"{plural(len(part), 'picture')} of the validation data ({dataset.name})")


def batches(detector: AnyDetector, data: ComparisonData) -> Iterator[Batch]:
    """The pictures as the detector takes them, in batches of 1, 2, 7, and 7 from then on; the last may be smaller."""
    start = 0
    for stop in _ends(len(data.samples)):
        yield batch_of(detector, data.samples[start:stop])
        start = stop


def batch_of(detector: AnyDetector, samples: tuple[Sample, ...]) -> Batch:
    """At least one picture, resized by the detector's input spec."""
    items = [(sample, detector.input.place(sample.image_id, sample.size)) for sample in samples]
    return collate(items, detector.input.stride, with_targets=False)


def _ends(count: int) -> list[int]:
    """Where each batch of `count` pictures ends."""
    ends: list[int] = []
    while not ends or ends[-1] < count:
        size = BATCH_SIZES[min(len(ends), len(BATCH_SIZES) - 1)]
        ends.append(min((ends[-1] if ends else 0) + size, count))
    return ends


def _fits(detector: AnyDetector, size: Size, canvas: Size | None, pictures: Pictures) -> bool:
    """Whether a picture of this size fits the canvas when the program is given it."""
    if pictures == "exact":
        size = canvas_size([detector.input.place(0, size)], detector.input.stride)
    return fits(size, canvas, pictures)


def _refuse(name: str, canvas: Size | None) -> NoReturn:
    height, width = canvas or (0, 0)
    raise UserError(
        f"{name}: no picture to compare on fits the {height} x {width} px (h x w) that the file takes; export with "
        "another --size"
    )


def _drawn(detector: AnyDetector, count: int, canvas: Size | None, pictures: Pictures) -> ComparisonData:
    """Drawn pictures of two sizes, where two fit."""
    small = ((canvas[0], canvas[1]), (max(1, canvas[0] // 2), canvas[1])) if canvas else ()
    sizes = [size for size in DRAWN + small if _fits(detector, size, canvas, pictures)][:2]
    if not sizes:
        _refuse("drawn pictures", canvas)
    source = source_of(detector)
    samples = []
    for index, which in enumerate(_drawn_sizes(count)):
        height, width = sizes[which % len(sizes)]
        image = cv2.resize(draw_picture(np.random.default_rng(index))[0], (width, height))
        proposals = source.of_picture(image) if source else None
        if (clip := detector.input.clip) is not None:  # the picture moves
            image = np.stack([np.roll(image, DRAWN_SPEED * frame, axis=1) for frame in range(clip.frames)])
        samples.append(Sample(image, Objects.empty(), index, proposals))
    return ComparisonData(tuple(samples), None, "1 drawn picture" if count == 1 else f"{count} drawn pictures")


def _drawn_sizes(count: int) -> list[int]:
    """Which of two sizes each picture has.

    A file that resizes takes only pictures of one size at once, so the first batches have one each; later ones are
    mixed, which a file of any other kind must take too.
    """
    ends = _ends(count)
    sizes = []
    for index in range(count):
        batch = sum(index >= end for end in ends)
        sizes.append((index if batch >= len(BATCH_SIZES) else batch) % 2)
    return sizes

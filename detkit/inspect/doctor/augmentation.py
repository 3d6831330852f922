"""Objects that the augmentation of the training loses every time: outside of its windows, or too small after them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from detkit.data.dataset import ImageDataset
from detkit.data.transforms import Augment
from detkit.data.transforms.colour import HSVConfig, HSVShiftConfig, PhotometricConfig
from detkit.data.transforms.presets import Preset
from detkit.engine.settings import RunConfig
from detkit.inspect.doctor.findings import Finding, Table
from detkit.inspect.doctor.reading import Split
from detkit.inspect.doctor.tally import object_finding
from detkit.structures import Sample

MAX_IMAGES = 300  # training images that are tried
DRAWS = 24  # augmentations of an image in which an object must be lost each time
MANY = 0.01  # part of the objects from which such objects are a warning, not a note
ROW = "row"  # column in which an object carries its number
COLOURS = (HSVConfig, HSVShiftConfig, PhotometricConfig)


def augmentation_findings(config: RunConfig, train: Split) -> tuple[list[Finding], list[Table]]:
    """Augments blank pictures with the objects of evenly spread images, until each object was seen or `DRAWS` times."""
    entries = [entry for entry in config.augment if not isinstance(entry, COLOURS)]
    if all(isinstance(entry, Preset) or entry.name == "horizontal_flip" for entry in entries):
        return [], []
    augment = Augment(entries, config.train.epochs)
    images = np.unique(np.linspace(0, len(train.dataset) - 1, min(MAX_IMAGES, len(train.dataset))).astype(int))
    pictures = _BlankPictures(train.dataset)
    total, at_first, never = 0, 0, []
    for image in images.tolist():
        rows = pictures.counted_rows(image)
        unseen, total = rows, total + len(rows)
        for draw in range(DRAWS):
            if not len(unseen):
                break
            seen = augment(pictures.sample(image), image * DRAWS + draw, draw % config.train.epochs, pictures.others)
            unseen = np.setdiff1d(unseen, seen.objects.extra[ROW])
            at_first += len(unseen) if draw == 0 else 0
        never.append(unseen)
    if not total:
        return [], []
    lost = np.concatenate(never)
    share = len(lost) / total
    what = f"were lost in each of {DRAWS} tries of the augmentation"
    fix = "They are too small or too near the border for it: `detkit show` draws it; change `augment`."
    findings = object_finding(
        "lost-in-augmentation", "warning" if share >= MANY else "note", [(train, lost)], what, fix, total=total
    )
    rows_of_table: list[list[str | float]] = [
        ["objects tried", total],
        ["lost at the first try", at_first],
        ["lost at every try", len(lost)],
    ]
    return findings, [Table(f"Augmentation of {len(images)} training images", ["", "objects"], rows_of_table)]


class _BlankPictures:
    """Samples of a data set whose pictures are black and not read; each object carries the number of its row."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset
        self._starts = np.searchsorted(dataset.image_of_object, np.arange(len(dataset) + 1))

    def counted_rows(self, image: int) -> np.ndarray:
        rows = np.arange(*self._starts[[image, image + 1]])
        return np.asarray(rows[~self.dataset.objects.ignore[rows]])

    def sample(self, image: int, *, numbered: bool = True) -> Sample:
        truth = self.dataset.ground_truth(image)
        rows = np.arange(*self._starts[[image, image + 1]]) if numbered else np.full(len(truth.objects), -1)
        objects = replace(truth.objects, masks=None, extra={**truth.objects.extra, ROW: rows})  # boxes are counted
        return Sample(np.zeros((*truth.size, 3), np.uint8), objects, truth.image_id)

    def others(self, rng: np.random.Generator, count: int) -> list[Sample]:
        return [self.sample(int(index), numbered=False) for index in rng.integers(0, len(self.dataset), count)]

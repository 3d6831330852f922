"""The data of a configuration, read although they are flawed: what is wrong is written down with its place.

Training stops at a flaw, or settles it by `data.on_bad_label`. Here a picture that cannot be read is left out, a box
that is no box is dropped and one that leaves its picture is cut, each with a `Flaw`; all else is read as for training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from detkit.data.build import DataConfig, build_dataset
from detkit.data.check_cache import picture_sizes
from detkit.data.checks import TOLERANCE, Box, LabelPolicy, NoValidation, RawImage, check_images
from detkit.data.dataset import ImageDataset
from detkit.inspect.doctor.findings import Place
from detkit.structures import Size

SplitName = Literal["train", "val"]
FlawCode = Literal[
    "picture-unreadable",
    "annotation-unreadable",
    "size-disagrees",
    "object-unreadable",
    "box-not-finite",
    "box-empty",
    "box-outside",
    "box-over-border",
]


@dataclass(frozen=True)
class Flaw:
    """What is wrong with a picture or an object as its file has it."""

    code: FlawCode
    place: Place


@dataclass(frozen=True, eq=False)
class Split:
    """A split without what is wrong in it.

    flaws        everything that was left out or cut
    num_images   that the files list, readable or not
    num_objects  likewise
    """

    name: SplitName
    dataset: ImageDataset
    flaws: Sequence[Flaw]
    num_images: int
    num_objects: int

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 `[I, 2]`: (h, w) of each picture."""
        return np.array([self.dataset.ground_truth(index).size for index in range(len(self.dataset))]).reshape(-1, 2)

    def place(self, image: int, box: np.ndarray | None = None, text: str = "") -> Place:
        """A picture by its index, and perhaps a box `[4]` on it."""
        corners = None if box is None else _corners(box.tolist())
        return Place(self.name, self.dataset.image_id(image), self.dataset.path(image), corners, text)

    def object_place(self, row: int, text: str = "") -> Place:
        """One of the data set's objects, with its class, its sides in px of the picture, and `text`."""
        objects, image = self.dataset.objects, int(self.dataset.image_of_object[row])
        box = objects.boxes[row]
        sides = f"{box[2] - box[0]:.4g} x {box[3] - box[1]:.4g} px"
        name = self.dataset.categories.names[int(objects.labels[row])]
        return self.place(image, box, ", ".join(filter(None, (name, sides, text))))


def read_splits(config: DataConfig) -> list[Split]:
    """The training data and, where there are any, the validation data.

    Raises DataError if the files cannot be read at all, or if no picture of a split is left.
    """
    splits = [_read_split(config, "train")]
    try:
        splits.append(_read_split(config, "val"))
    except NoValidation:
        return splits
    return splits


def _read_split(config: DataConfig, name: SplitName) -> Split:
    flaws: list[Flaw] = []
    counts = Counter[str]()

    def check(
        images: Sequence[RawImage], title: str, _: LabelPolicy, decode: bool, min_side: float = 0.0
    ) -> tuple[list[RawImage], Counter[str]]:
        sizes = picture_sizes([image.path for image in images], decode, title)
        checked = []
        for image, size in zip(images, sizes, strict=True):
            sound = _sound_part(image, size, min_side, lambda code, place: flaws.append(Flaw(code, place)), name)
            checked += [] if sound is None else [sound]
        counts.update(images=len(images), objects=sum(len(image.objects) for image in images))
        # Nothing is left to complain of, except that nothing is left.
        return check_images(checked, title, "raise", decode, min_side) if checked else _refuse(images, title, decode)

    dataset = build_dataset(config, name, check)
    return Split(name, dataset, flaws, counts["images"], counts["objects"])


def _refuse(images: Sequence[RawImage], title: str, decode: bool) -> tuple[list[RawImage], Counter[str]]:
    """Raises DataError as a training with `on_bad_label: drop_image` would."""
    return check_images(images, title, "drop_image", decode)


def _sound_part(
    image: RawImage, size: Size | str, min_side: float, report: Callable[[FlawCode, Place], None], split: str
) -> RawImage | None:
    """The image with its true size, and boxes on it; None if it has none. Flaws are reported.

    size  (h, w) of the upright picture, or why it cannot be read
    """

    def place(text: str, box: Box | None = None) -> Place:
        finite = box is not None and all(map(math.isfinite, box))
        return Place(split, image.image_id, image.path, box if finite else None, text)

    if image.problem is not None:
        report("annotation-unreadable", place(f"{image.where}: {image.problem}"))
        return None
    if isinstance(size, str):
        report("picture-unreadable", place(size))
        return None
    height, width = size
    if image.size not in (None, size):
        assert image.size is not None
        annotated = f"{image.size[1]} x {image.size[0]}"
        swapped = ", the sides are swapped" if image.size == size[::-1] else ""
        report("size-disagrees", place(f"annotated {annotated}, the upright picture is {width} x {height}{swapped}"))
    objects = []
    for item in image.objects:
        code = "object-unreadable" if item.problem else box_flaw(item.box, size, min_side)
        if code is not None:
            x1, y1, x2, y2 = item.box
            text = item.problem or f"x {x1:g} to {x2:g}, y {y1:g} to {y2:g}, picture {width} x {height}"
            report(code, place(f"{item.where}: {text}", item.box))
        if code in (None, "box-over-border"):
            x1, y1, x2, y2 = item.box
            inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
            if inside[2] - inside[0] > min_side and inside[3] - inside[1] > min_side:
                objects.append(replace(item, box=inside))
    return replace(image, size=size, objects=objects)


def box_flaw(box: Box, size: Size, min_side: float) -> FlawCode | None:
    """What is wrong with a box, xyxy, on a picture of `size` (h, w); an overhang of `TOLERANCE` px is not."""
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        return "box-not-finite"
    if x2 - x1 <= min_side or y2 - y1 <= min_side:
        return "box-empty"
    height, width = size
    if min(x2, y2, width - x1, height - y1) <= 0:
        return "box-outside"
    return "box-over-border" if max(-x1, -y1, x2 - width, y2 - height) > TOLERANCE else None


def _corners(values: Sequence[float]) -> Box:
    x1, y1, x2, y2 = values
    return (x1, y1, x2, y2)

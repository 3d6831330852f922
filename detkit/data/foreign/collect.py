"""What the readers of other tools' formats share: they collect images, objects and counts of what a box cannot hold.

Such a format has many ways to draw an object; each is read as the upright box around it, a polygon with its mask.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from detkit.data.checks import Box, RawImage, RawObject
from detkit.data.coco_segmentation import MAX_COORDINATE
from detkit.data.picture_names import RESPELLED, find
from detkit.structures import Size

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)


@dataclass
class ForeignData:
    """What was read so far.

    images  of each split, with labels in the order in which the classes were met until `finish`
    names   of the classes that the files list, in their order
    notes   counts of what is unusual and was read, for the summary
    lost    counts of what has no place in a data set of boxes and masks
    """

    images: dict[str, list[RawImage]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    _labels: dict[str, int] = field(default_factory=dict)
    _name_of: dict[Path, str] = field(default_factory=dict)

    def object(
        self,
        where: str,
        name: Any,
        box: Box | None,
        *,
        ignore: bool = False,
        problem: str | None = None,
        mask: Sequence[np.ndarray | None] | bytes = (),
    ) -> RawObject:
        """An object of the class `name`; a class or a `box` that could not be read is its problem.

        mask  its polygons, of which each must be known, or COCO's compressed run lengths
        """
        text = str(name).strip() if isinstance(name, (str, int)) else ""
        if not text:
            problem = problem or f"expected the name of its class, found {name!r}"
        elif box is None:
            problem = problem or "expected finite numbers that make a box"
        label = self._labels.setdefault(text, len(self._labels)) if text else -1
        columns: dict[str, Any] = {"ignore": ignore}
        if mask and (isinstance(mask, bytes) or all(polygon is not None for polygon in mask)):
            columns["masks"] = mask
        return RawObject(f"{where} ({text or 'no class'})", label, box or NO_BOX, problem, columns)

    def has_box(self, kind: str, plain: Container[str], shapes: Container[str]) -> bool:
        """Counts an object that is drawn as `kind` as lost, unless that is `plain`; whether it is one of `shapes`.

        Of these the box around them is read.
        """
        known = kind in shapes
        self.lost[f"object drawn as {kind}, of which the box is kept"] += known and kind not in plain
        self.lost[f"object drawn as {kind}, which has no box"] += not known
        return known

    def add(
        self,
        split: str,
        picture: str,
        folders: list[Path],
        where: Path,
        objects: Iterable[RawObject],
        size: Size | None = None,
    ) -> None:
        """Adds the image whose picture has this name in one of `folders`; `where` is the file of its annotation."""
        path, as_written = find(picture, folders) if picture else (None, True)
        self.notes[RESPELLED] += not as_written
        problem = None if picture else "names no picture"
        path = path or folders[0] / picture
        other = self._name_of.setdefault(path, picture)
        if other != picture:  # such as cam1/7.jpg and cam2/7.jpg, unpacked into one folder
            problem = f"{other} and {picture} both lead to {path}; put the pictures into the folders that are named"
        name = f"{where.name}: {picture}" if picture else str(where)
        self.images.setdefault(split, []).append(RawImage(picture, str(path), name, size, tuple(objects), problem))

    def finish(self) -> tuple[str, ...]:
        """The names of the classes: those that the files list, then others, sorted. Labels are indices into them."""
        others = sorted(set(self._labels) - set(self.names))
        names = tuple(dict.fromkeys((*self.names, *others)))
        label_of = {old: names.index(name) for name, old in self._labels.items()} | {-1: -1}
        for split, images in self.images.items():
            self.images[split] = [
                replace(image, objects=[replace(item, label=label_of[item.label]) for item in image.objects])
                for image in images
            ]
        return names


def split_of(folder: PurePath, stem: str = "") -> str:
    """The split that stands as a word in `stem`, or that one of the folders is called; `train` where nothing tells."""
    words = re.split("[^a-z]+", stem.lower()) + [part.lower() for part in reversed(folder.parts)]
    splits = (split for word in words for split, known in SPLIT_WORDS.items() if word in known)
    return next(splits, "train")


def around(xs: Iterable[Any], ys: Iterable[Any]) -> Box | None:
    """xyxy around points; None if there is none, or if one is not finite."""
    try:
        x, y = [float(value) for value in xs], [float(value) for value in ys]
    except (TypeError, ValueError, OverflowError):
        return None
    if not x or len(x) != len(y) or not all(map(math.isfinite, (*x, *y))):
        return None
    return min(x), min(y), max(x), max(y)


def around_points(points: Any) -> Box | None:
    """xyxy around `[[x, y], ...]`."""
    try:
        return around([x for x, _ in points], [y for _, y in points])
    except (TypeError, ValueError):
        return None


def polygon_of(points: Any, scale: tuple[float, float] = (1.0, 1.0)) -> np.ndarray | None:
    """float64 `[n, 2]` of `[[x, y], ...]`, times `scale`; None if these are not three points or more."""
    try:
        polygon = np.array(points, np.float64) * scale
    except (TypeError, ValueError, OverflowError):
        return None
    is_polygon = polygon.ndim == 2 and len(polygon) >= 3 and (abs(polygon) <= MAX_COORDINATE).all()
    return polygon if is_polygon else None


def turned(box: Box | None, degrees: Any, pivot: tuple[float, float] | None = None) -> Box | None:
    """xyxy around a box that is turned clockwise around `pivot`, or around its centre."""
    angle = number(degrees)
    if box is None or angle is None or not angle:
        return box if angle is not None else None
    x1, y1, x2, y2 = box
    px, py = pivot or ((x1 + x2) / 2, (y1 + y2) / 2)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = [(x - px, y - py) for x in (x1, x2) for y in (y1, y2)]
    return around([px + x * cosine - y * sine for x, y in corners], [py + x * sine + y * cosine for x, y in corners])


def ellipse(cx: Any, cy: Any, rx: Any, ry: Any, degrees: Any = 0.0) -> Box | None:
    """xyxy around an ellipse of these radii, which is turned clockwise around its centre."""
    values = [number(value) for value in (cx, cy, rx, ry, degrees)]
    if None in values:
        return None
    x, y, a, b, angle = (value or 0.0 for value in values)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    dx, dy = math.hypot(a * cosine, b * sine), math.hypot(a * sine, b * cosine)
    return x - dx, y - dy, x + dx, y + dy


def number(value: Any) -> float | None:
    """The finite number; None for anything else."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def size_of(height: Any, width: Any) -> Size | None:
    """(h, w); None where a file does not say it."""
    values = number(height), number(width)
    return (int(values[0]), int(values[1])) if values[0] and values[1] else None

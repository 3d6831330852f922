"""The label files of darknet's descendants: an object a line.

A line is `class cx cy w h`: the number of the class, then the centre and the sides of the box as shares of the upright
picture. A line with a polygon, `class x1 y1 x2 y2 x3 y3 ...`, is an object with this mask, in the box around it. Behind
a box there may be keypoints, `x y visibility` or `x y` each, or a confidence, which is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.checks import Box, RawObject
from detkit.data.text_files import decode_text
from detkit.structures import Column, Size

MAX_SHARE = 2.0  # a larger coordinate is one in pixels, not a share of a picture whose border it passes a little
MAX_LINE = 60  # characters of a faulty line that a message quotes
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)
PointShape = tuple[int, int]  # how many keypoints an object has, and how many numbers each: 2, or 3 with a visibility

REPEATED = "line repeated and read once"
SEPARATED = "line with commas or semicolons between its numbers"
CONFIDENCE = "line with a confidence, which is left out"


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A label file before it is known what its longer lines are.

    lines    the numbers of each different line, one blank between them, and where it first stands, from 1
    longer   (number of columns, whether they can be a box and keypoints) of the lines with more than six columns
    notes    counts of what is unusual, for the summary
    problem  why the file cannot be read
    """

    lines: Mapping[str, int] = field(default_factory=dict)
    longer: frozenset[tuple[int, bool]] = frozenset()
    notes: Counter[str] = field(default_factory=Counter)
    problem: str | None = None


def read_labels(path: Path) -> LabelFile | None:
    """None if there is no such file."""
    try:
        text = decode_text(path.read_bytes())
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, OSError) as error:
        return LabelFile(problem=f"expected UTF-8 text, an object a line: {error}")
    first: dict[str, int] = {}
    longer = set()
    notes: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        separated = "," in line or ";" in line
        columns = _separated_columns(line) if separated else line.split()
        if columns:
            notes[SEPARATED] += separated
            notes[REPEATED] += first.setdefault(" ".join(columns), number) != number
        if len(columns) > 6:
            longer.add((len(columns), _like_keypoints(columns)))
    return LabelFile(first, frozenset(longer), notes)


def point_shape(files: Sequence[LabelFile]) -> PointShape | None:
    """The keypoints that the longer lines of all these files have; None if they are polygons.

    `class cx cy w h` and P times `x y visibility` have a third of their further columns 0, 1 or 2 and are all of one
    length, which polygons are not, but by chance. Points without a visibility cannot be told from polygons.
    """
    longer = {kind for file in files for kind in file.longer}
    have_points = len(longer) == 1 and all(like for _, like in longer)
    return ((next(iter(longer))[0] - 5) // 3, 3) if have_points else None


class LineReader:
    """Reads the lines of label files as objects.

    names    of the classes, by the number that stands in the files
    points   the keypoints of a line; None: longer lines are polygons
    columns  what is read beside boxes
    notes    counts of what is unusual, for the summary
    """

    def __init__(self, names: Mapping[int, str], points: PointShape | None, columns: Collection[Column]) -> None:
        self.names, self.points, self.columns = names, points, columns
        self._with_points = 5 + points[0] * points[1] if points else 0  # columns of a line with keypoints
        self.notes: Counter[str] = Counter()
        self._labels = {number: label for label, number in enumerate(names)}
        self._known = f"the names are {min(names)} ({names[min(names)]}) to {max(names)} ({names[max(names)]})"

    def read(self, line: str, where: str, size: Size) -> RawObject:
        """The object of a line, on a picture of `size` (h, w); `where` is its file and number."""
        columns = line.split(" ")
        quoted = repr(line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}...")
        fault = self._form_fault(columns)
        if fault is not None:
            return RawObject(where, -1, NO_BOX, f"{fault}; found {len(columns)} columns: {quoted}")
        try:
            number, *shares = map(float, columns)
        except ValueError:
            return RawObject(where, -1, NO_BOX, f"expected numbers alone, found {quoted}")
        if number not in self._labels:
            return RawObject(where, -1, NO_BOX, f"the class {columns[0]} is not known; {self._known}")
        label, where = self._labels[int(number)], f"{where} ({self.names[int(number)]})"
        further, fault = self._further_columns(shares, size)
        if len(columns) in (6, self._with_points):
            shares = shares[:4]
        if any(MAX_SHARE < abs(share) < math.inf for share in shares):
            fault = f"expected shares of the picture, 0 to 1, found {quoted}; divide pixels by its width and height"
        elif fault is not None:
            fault = f"{fault}, found {quoted}"
        return RawObject(where, label, NO_BOX if fault else _box(shares, size), fault, further)

    @np.errstate(over="ignore")  # of shares that are refused
    def _further_columns(self, shares: Sequence[float], size: Size) -> tuple[dict[str, Any], str | None]:
        """The keypoints or the mask of a line, as far as it has them and they are read, and the problem."""
        further: dict[str, Any] = {}
        if self.points and len(shares) == self._with_points - 1:
            keypoints, fault = _keypoints(shares[4:], self.points, size)
            if "keypoints" in self.columns:
                further = {"keypoints": keypoints}
            return further, fault
        if len(shares) == 5:
            self.notes[CONFIDENCE] += 1
            return further, None if 0 <= shares[4] <= 1 else "expected a confidence, 0 to 1, behind the box"
        if len(shares) > 5 and "masks" in self.columns:
            further = {"masks": [np.array(shares).reshape(-1, 2) * size[::-1]]}
        is_finite = len(shares) < 5 or all(map(math.isfinite, shares))
        return further, None if is_finite else "expected a polygon of finite numbers"

    def _form_fault(self, columns: Sequence[str]) -> str | None:
        """What is expected instead of a line of so many columns, or None."""
        if len(columns) in (5, 6, self._with_points):
            return None
        if self.points:
            return f"expected class cx cy w h, alone or with keypoints in {self._with_points} columns"
        # Two coordinates of five points are 0 or 1 where an object is cut off at a corner of the picture.
        if (len(columns) % 2 == 0 or len(columns) > 11) and _like_keypoints(columns):
            return (
                "expected a polygon like other lines, not a box with keypoints; kpt_shape in the YAML file tells them"
            )
        if len(columns) < 7 or len(columns) % 2 == 0:
            return "expected class cx cy w h, or class and at least 3 points x y"
        return None


def _separated_columns(line: str) -> list[str]:
    """The numbers between the commas or semicolons of a line. One whose commas are decimal points is left as it is."""
    separator = ";" if ";" in line else ","
    columns = [part.strip() for part in line.strip().removesuffix(separator).split(separator)]
    return columns if all(len(column.split()) == 1 for column in columns) else line.split()


def _like_keypoints(columns: Sequence[str]) -> bool:
    """Whether a line can be a box and points `x y visibility`."""
    try:
        return len(columns) > 7 and len(columns) % 3 == 2 and all(float(v) in (0, 1, 2) for v in columns[7::3])
    except ValueError:
        return False


def _keypoints(shares: Sequence[float], points: PointShape, size: Size) -> tuple[np.ndarray, str | None]:
    """float32 `[P, 3]`: x, y in px and visibility, 0, 0, 0 for one that is not labelled; and the problem.

    Without a visibility, a point at 0, 0 is not labelled, and any other is visible.
    """
    numbers = np.array(shares).reshape(points)
    places = numbers[:, :2]
    visible = numbers[:, 2] if points[1] == 3 else np.where((places != 0).any(axis=1), 2, 0)
    labelled = visible > 0
    fault = None
    if not np.isin(visible, (0, 1, 2)).all():
        fault = "expected a visibility of 0 (not labelled), 1 (hidden) or 2 (visible) for each keypoint"
    elif not (abs(places[labelled]) <= MAX_SHARE).all():
        fault = "expected keypoints as shares of the picture, 0 to 1"
    keypoints = np.column_stack([places * size[::-1], visible])
    return np.where(labelled[:, None], keypoints, 0).astype(np.float32), fault


def _box(shares: Sequence[float], size: Size) -> Box:
    """xyxy in px of `cx cy w h` or of the points of a polygon."""
    height, width = size
    if len(shares) == 4:
        cx, cy, w, h = shares
        return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
    xs, ys = shares[::2], shares[1::2]
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height

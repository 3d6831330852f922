"""The keypoints of a COCO file: what its categories call them, and those of an annotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detkit.data.keypoint_names import keypoint_categories
from detkit.structures import KeypointCategories

Pairs = tuple[tuple[int, int], ...]

HALF = np.array([0.5, 0.5, 0])  # px: COCO's keypoints are whole pixels, whose middle is half a pixel further
DIFFERENT = "class whose keypoints are left out"
SKELETON = "pair of a skeleton without two keypoints left out"


@dataclass(frozen=True)
class COCOKeypoints:
    """What the categories of a file say about keypoints.

    categories  None: there are none
    points      for each row of the categories, how many keypoints an object of it has; -1: they are not read
    notes       counts of what is unusual, for the summary
    """

    categories: KeypointCategories | None = None
    points: Sequence[int] = ()
    notes: Mapping[str, int] = field(default_factory=dict)


def coco_keypoints(rows: Sequence[Mapping[str, Any]], names: Sequence[str], used: Sequence[bool]) -> COCOKeypoints:
    """The keypoints of the categories that are `used`, of which all have the same ones or none.

    Where they differ between two categories, one list cannot hold them: they are left out and counted.
    """
    lists = [_names(row) if use else () for row, use in zip(rows, used, strict=True)]
    different = {own: name for own, name in zip(lists, names, strict=True) if own}
    if len(different) > 1:
        listed = " and ".join(list(different.values())[:2])
        text = f"{DIFFERENT}, as those of {listed} differ: choose with data.classes"
        return COCOKeypoints(None, [-1] * len(rows), {text: sum(map(bool, lists))})
    points = [len(own) if use else -1 for own, use in zip(lists, used, strict=True)]
    if not different:
        return COCOKeypoints(None, points)
    (own,) = different
    pairs, faulty = _skeleton(next(row for row, each in zip(rows, lists, strict=True) if each), len(own))
    categories = keypoint_categories(own, skeleton=pairs)
    return COCOKeypoints(categories, points, {SKELETON: faulty})


def read_keypoints(value: Any, points: int) -> tuple[np.ndarray | None, str | None]:
    """float32 `[points, 3]`: x, y in continuous px and visibility, from COCO's `[x1, y1, v1, ...]`; and the problem.

    One that is not labelled is 0, 0, 0.
    """
    if value in (None, []):
        return None, None
    try:
        flat = np.array(value, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        return None, "keypoints: expected x, y and visibility of each point, as numbers"
    if len(flat) != 3 * points:
        return None, f"keypoints: expected {3 * points} numbers, x, y, visibility of {points} points, found {len(flat)}"
    labelled = flat[2::3] != 0
    if not np.isin(flat[2::3], (0, 1, 2)).all():
        wrong = next(value for value in flat[2::3] if value not in (0, 1, 2))
        return None, f"keypoints: expected a visibility of 0 (not labelled), 1 (hidden) or 2 (visible), found {wrong:g}"
    if not np.isfinite(flat.reshape(-1, 3)[labelled]).all():
        return None, "keypoints: a coordinate is not finite"
    return np.where(labelled[:, None], flat.reshape(-1, 3) + HALF, 0).astype(np.float32), None


def write_keypoints(keypoints: np.ndarray, decimals: int) -> list[float]:
    """COCO's `[x1, y1, v1, ...]` of keypoints `[P, 3]`."""
    labelled = keypoints[:, 2:] > 0
    flat = np.where(labelled, keypoints.astype(np.float64) - HALF, 0).round(decimals)
    return [int(number) if number.is_integer() else number for number in flat.ravel().tolist()]


def _names(row: Mapping[str, Any]) -> tuple[str, ...]:
    names = row.get("keypoints")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _skeleton(row: Mapping[str, Any], points: int) -> tuple[Pairs, int]:
    """The pairs of a skeleton, counted from 0, and how many name other points than there are; a file counts from 1."""
    pairs = row.get("skeleton")
    pairs = pairs if isinstance(pairs, list) else []
    right = [
        (pair[0] - 1, pair[1] - 1)
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and 1 <= i <= points for i in pair)
    ]
    return tuple(right), len(pairs) - len(right)

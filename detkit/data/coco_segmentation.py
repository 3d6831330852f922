"""The bounding box of a COCO segmentation, for annotations that have no `bbox`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from detkit.data.checks import Box


def segmentation_box(segmentation: Any) -> Box | None:
    """xyxy around all polygons, or around the pixels of a run-length encoding; None if it is neither or is empty.

    Polygons are `[[x1, y1, x2, y2, ...], ...]`; points in lists of their own are read too. A run-length encoding is
    `{"size": [h, w], "counts": ...}` with the runs as a list or as COCO's compressed text.
    """
    if isinstance(segmentation, dict):
        return _mask_box(segmentation.get("size"), segmentation.get("counts"))
    numbers = list(_numbers(segmentation))
    if len(numbers) < 6 or len(numbers) % 2 or not all(map(math.isfinite, numbers)):
        return None
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in lists of lists, and nan for anything else."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    else:
        yield float(value) if isinstance(value, (int, float)) and abs(value) < 1e300 else math.nan


def _mask_box(size: Any, counts: Any) -> Box | None:
    """The box around the pixels of a mask, whose runs go down its columns and are background and object in turn."""
    runs: Any = _decompress(counts) if isinstance(counts, str) else counts
    if not all(isinstance(rows, list) and all(type(n) is int and n >= 0 for n in rows) for rows in (size, runs)):
        return None
    if len(size) != 2 or sum(runs) != size[0] * size[1]:
        return None
    height = size[0]
    ends = np.cumsum(runs, dtype=np.int64)
    starts, ends = ends[:-1:2], ends[1::2]  # of the object's runs
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return None
    columns, last_columns = starts // height, (ends - 1) // height
    over_the_edge = (last_columns > columns).any()  # such a run has the bottom of one column and the top of the next
    top = 0 if over_the_edge else (starts % height).min()
    bottom = height if over_the_edge else ((ends - 1) % height).max() + 1
    return float(columns.min()), float(top), float(last_columns.max() + 1), float(bottom)


def _decompress(text: str) -> list[int] | None:
    """The runs in COCO's compressed text: six bits a character, the lowest first, as in `rleFrString` of its maskApi.c.

    The fifth bit says that a number goes on, the fourth bit of its last character is the sign, and from the fourth
    number on they are differences from the number two before.
    """
    runs: list[int] = []
    number, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (1 << shift) if bits & 16 else 0
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number, shift = 0, 0
    return runs if shift == 0 else None

"""The masks of a COCO file: polygons, or run lengths as numbers or as COCO's compressed text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from detkit.data.checks import Box
from detkit.structures import Size
from detkit.structures.masks import Polygons, read_counts

# px from the picture's corner. Drawing a polygon takes memory by its length, so that a wrong number could take all.
MAX_COORDINATE = 1e5
MAX_PIXELS = 2**31  # of a picture with run lengths; pycocotools counts them in 32 bits
MAX_SHOWN = 40  # characters of run lengths in a message
DECIMALS = 4  # of a px, in files that are written


@dataclass(frozen=True, slots=True)
class Segmentation:
    """What an annotation says about its mask.

    mask     polygons, compressed run lengths, or None: it has none
    size     (h, w) of the picture, which run lengths say
    short    polygons of less than three points, which have no area and are left out
    empty    whether the mask has no pixel in the picture, as far as its numbers alone tell
    problem  why it cannot be read, with the fix
    """

    mask: Polygons | bytes | None = None
    size: Size | None = None
    short: int = 0
    empty: bool = False
    problem: str | None = None


def read_segmentation(segmentation: Any, size: Size | None) -> Segmentation:
    """Reads the `segmentation` of an annotation on a picture of `size` (h, w), None where that is not known yet.

    Polygons are `[[x1, y1, x2, y2, ...], ...]`, or only one of them, or have points in lists of their own. Run lengths
    are `{"size": [h, w], "counts": ...}`.
    """
    if segmentation in (None, [], {}, ""):
        return Segmentation()
    if isinstance(segmentation, dict):
        return _read_run_lengths(segmentation.get("size"), segmentation.get("counts"), size)
    try:
        rings = [np.array(ring, np.float64).ravel() for ring in _rings(segmentation)]
    except (TypeError, ValueError, OverflowError):
        return Segmentation(problem="segmentation: expected polygons [[x1, y1, x2, y2, ...], ...] of numbers alone")
    odd = next((len(ring) for ring in rings if len(ring) % 2), None)
    if odd is not None:
        return Segmentation(problem=f"segmentation: expected x and y of each point, found {odd} numbers in a polygon")
    if not all(abs(ring).max(initial=0) <= MAX_COORDINATE for ring in rings):  # NaN is not below it either
        return Segmentation(problem="segmentation: a polygon has a number that is not finite, or far outside")
    long = [ring.reshape(-1, 2) for ring in rings if len(ring) >= 6]
    empty = bool(long) and not any(_reaches(ring, size) for ring in long)
    return Segmentation(long or None, None, len(rings) - len(long), empty)


def write_segmentation(mask: Polygons | bytes | None, size: Size) -> Any:
    """The `segmentation` of an annotation, as `EncodedMasks.decode` gives it; an empty list for no mask."""
    if isinstance(mask, bytes):
        return {"size": list(size), "counts": mask.decode("ascii")}
    return [np.round(ring.ravel(), DECIMALS).tolist() for ring in mask or ()]


def _rings(segmentation: Any) -> list[Any]:
    """The polygons, whose points may be lists of their own. Raises TypeError for what is no list of lists."""
    if not isinstance(segmentation, list):
        raise TypeError
    if not isinstance(segmentation[0], list):
        return [segmentation]
    one = all(isinstance(point, list) and len(point) == 2 and not isinstance(point[0], list) for point in segmentation)
    return [segmentation] if one else segmentation


def _reaches(ring: np.ndarray, size: Size | None) -> bool:
    """Whether a polygon has an area, and is not all on one side of the picture."""
    x, y = ring.T
    height, width = size or (math.inf, math.inf)
    inside = x.min() < width and y.min() < height and x.max() > 0 and y.max() > 0
    return bool(inside and abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) > 0)


def _read_run_lengths(own_size: Any, counts: Any, size: Size | None) -> Segmentation:
    runs = _runs(own_size, counts)
    if runs is None:
        problem = (
            "segmentation: expected run lengths as {size: [h, w], counts: a list, or COCO's compressed text}, whose "
            f"sum is h x w, found size {own_size!r} and counts {_shortened(counts)}"
        )
        return Segmentation(problem=problem)
    height, width = own_size
    if size is not None and (height, width) != size:
        problem = f"segmentation: its run lengths are of {width} x {height} (w x h), the image of {size[1]} x {size[0]}"
        return Segmentation(problem=f"{problem}; make them of the image's size")
    from pycocotools import mask

    compressed: bytes
    if isinstance(counts, str):
        compressed = counts.encode("ascii")
    else:
        compressed = mask.frPyObjects({"size": own_size, "counts": runs}, height, width)["counts"]
    return Segmentation(compressed, (height, width), empty=not any(runs[1::2]))


def _shortened(value: Any) -> str:
    text = repr(value[:MAX_SHOWN] if isinstance(value, (list, str)) else value)
    return f"{text[:MAX_SHOWN]}..." if len(text) > MAX_SHOWN else text


def segmentation_box(segmentation: Any) -> Box | None:
    """xyxy around all polygons, or around the pixels of run lengths; None if it is neither or is empty."""
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


def _runs(size: Any, counts: Any) -> list[int] | None:
    """The runs down the columns of a mask, background and object in turn; None if they are not of `size` [h, w]."""
    runs: Any = counts
    if isinstance(counts, str):
        try:
            runs = read_counts(counts.encode()).tolist()
        except ValueError:
            return None
    if not all(isinstance(rows, list) and all(type(n) is int and n >= 0 for n in rows) for rows in (size, runs)):
        return None
    return runs if len(size) == 2 and sum(runs) == size[0] * size[1] <= MAX_PIXELS else None


def _mask_box(size: Any, counts: Any) -> Box | None:
    """The box around the pixels of a mask."""
    runs = _runs(size, counts)
    if runs is None:
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

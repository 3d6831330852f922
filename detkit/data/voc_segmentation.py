"""PASCAL VOC's SegmentationObject: a picture whose value i is the i-th <object> of the XML file.

0 is background, 255 the border of an object, which belongs to none. A pixel has one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from detkit.structures import MaskCrops, Size

BORDER = 255
MAX_OBJECTS = BORDER - 1
MODES = ("P", "L", "1")  # of Pillow, whose pixels are one number each


@dataclass(frozen=True, slots=True)
class SegmentationObjects:
    """The masks of a picture.

    masks    compressed run lengths of the objects that were asked for; None where no pixel has its number
    size     (h, w); None if the file cannot be read
    others   numbers of the file that none of the objects has
    problem  why it cannot be read, with the fix
    """

    masks: Sequence[bytes | None] = ()
    size: Size | None = None
    others: int = 0
    problem: str | None = None


def read_objects(path: Path, numbers: Sequence[int], size: Size | None) -> SegmentationObjects:
    """The masks of the objects with these numbers; `size` (h, w) is that of the annotation, where it says one."""
    try:
        with Image.open(path) as picture:
            mode, pixels = picture.mode, np.asarray(picture, np.uint8)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return SegmentationObjects(problem=f"{path}: cannot be read: {error}")
    if mode not in MODES:
        problem = f"{path}: expected a picture with a palette or in grey, whose values are the objects, found {mode}"
        return SegmentationObjects(problem=problem)
    height, width = pixels.shape
    if size is not None and (height, width) != size:
        problem = f"{path}: is {width} x {height} (w x h), but the annotation says {size[1]} x {size[0]}"
        return SegmentationObjects(problem=f"{problem}; both must have the size of the picture")
    present = set(np.unique(pixels).tolist()) - {0, BORDER}
    known = [number for number in numbers if number in present]
    encoded = _crops([pixels == number for number in known]).encode((height, width))
    mask_of = {number: encoded.decode(row) for row, number in enumerate(known)}
    masks = [mask if isinstance(mask := mask_of.get(number), bytes) else None for number in numbers]
    return SegmentationObjects(masks, (height, width), len(present - set(numbers)))


def write_objects(path: Path, size: Size, masks: MaskCrops[np.ndarray]) -> int:
    """Writes the masks of at most `MAX_OBJECTS` objects on a picture of `size` (h, w).

    Of two that overlap, the smaller one has the pixels. Returns how many lose some.
    """
    pixels, crops = np.zeros(size, np.uint8), masks.crops()
    areas = [int(crop.sum()) for crop in crops]
    for row in sorted(range(len(crops)), key=areas.__getitem__, reverse=True):
        x1, y1, x2, y2 = masks.windows[row].tolist()
        pixels[y1:y2, x1:x2][crops[row]] = row + 1
    picture = Image.fromarray(pixels)
    picture.putpalette(_palette())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    shown = np.bincount(pixels.ravel(), minlength=len(crops) + 1)[1:]
    return sum(area > left for area, left in zip(areas, shown.tolist(), strict=False))


def _crops(bitmaps: Sequence[np.ndarray]) -> MaskCrops[np.ndarray]:
    windows = []
    for bitmap in bitmaps:
        rows, columns = (np.flatnonzero(bitmap.any(axis=axis)) for axis in (1, 0))
        windows.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    crops = [bitmap[y1:y2, x1:x2] for bitmap, (x1, y1, x2, y2) in zip(bitmaps, windows, strict=True)]
    return MaskCrops.of(crops, windows)


def _palette() -> list[int]:
    """PASCAL's colours, 256 times red, green, blue.

    Of each three bits of a number, the lowest first, one goes to each of these, from their highest bit down.
    """
    numbers, channels, places = np.arange(256)[:, None, None], np.arange(3)[:, None], np.arange(8)
    bits = (numbers >> (3 * places + channels)) & 1
    colours: list[int] = (bits << (7 - places)).sum(axis=-1).ravel().tolist()
    return colours

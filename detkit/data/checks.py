"""The one check that every data set passes before training.

The readers turn their files into `RawImage` records; `check_images` opens every picture, looks at every box and applies
the policy of the configuration. Nothing is mended or dropped without being counted.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from PIL import ExifTags, Image
from tqdm import tqdm

from detkit.config import Config, UserError
from detkit.structures import ImageId, Size

LabelPolicy = Literal["raise", "clip", "drop_box", "drop_image"]
Box = tuple[float, float, float, float]

TOLERANCE = 1.0  # px that a box may reach over the border of its image: files that count from 0 or round up do so
MAX_LINES = 10  # problems spelled out in one message

_POLICIES = (
    "Mend the files, or set data.on_bad_label: clip (cut boxes to the image and drop those left empty), drop_box, or "
    "drop_image (also for pictures that cannot be read)."
)


class DataError(UserError):
    """A data set that cannot be used as it is: names the file, the object and the fix."""


class FilesConfig(Config):
    """What every data set read from files has.

    root          folder of the data set
    on_bad_label  `raise` lists the problems and stops. `clip` cuts boxes to the image and drops those left empty.
                  `drop_box` drops the object. `drop_image` drops the image, also one that is missing or cannot be read
    check_images  decode every picture once before training; false reads their headers only
    """

    root: str
    on_bad_label: LabelPolicy = "raise"
    check_images: bool = True


@dataclass(frozen=True, slots=True)
class RawObject:
    """One object as its file has it.

    where    how a message calls it: `object 3 (dog)`, `annotation 1768`
    label    index into the class names; -1 where `problem` says why there is none
    box      xyxy in continuous pixels
    ignore   VOC difficult, COCO crowd
    area     px^2; None: the area of the box
    problem  what the reader could not make out, with the fix
    """

    where: str
    label: int
    box: Box
    ignore: bool = False
    area: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class RawImage:
    """One image with its objects as the files have them.

    where    the file that a message names
    size     annotated (h, w); None where the file has none
    problem  why the annotation of this image cannot be read
    """

    image_id: ImageId
    path: str
    where: str
    size: Size | None
    objects: Sequence[RawObject]
    problem: str | None = None


def check_images(
    images: Sequence[RawImage], name: str, policy: LabelPolicy, decode: bool, min_side: float = 0.0
) -> tuple[list[RawImage], Counter[str]]:
    """The images with their true sizes and with boxes inside them, and the counts of what the policy did.

    A box is right if it is finite, wider and higher than `min_side` px and reaches at most `TOLERANCE` px over the
    border; the overhang is cut off and counted. Raises DataError listing every problem that the policy does not settle.
    """
    kept: list[RawImage] = []
    counts: Counter[str] = Counter()
    problems: list[str] = []
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        sizes = pool.map(partial(upright_size, decode=decode), [image.path for image in images])
        for image, size in tqdm(zip(images, sizes, strict=True), f"checking {name}", len(images), delay=2, leave=False):
            fault = image.problem or (size if isinstance(size, str) else _size_fault(image, size))
            objects: list[RawObject] = []
            done: Counter[str] = Counter()
            if fault is not None or isinstance(size, str):
                faults = [f"{image.where}: {fault}"]
            else:
                image = replace(image, size=size)
                faults, objects, done = _check_objects(image, policy, min_side)
            if faults and policy == "drop_image":
                counts["image dropped"] += 1
                continue
            counts += done
            problems += faults
            kept.append(replace(image, objects=objects))
    if problems:
        raise DataError(_report(name, problems))
    if not kept:
        raise DataError(f"{name}: no image is left; on_bad_label: {policy} dropped all {len(images)}")
    return kept, counts


def _check_objects(
    image: RawImage, policy: LabelPolicy, min_side: float
) -> tuple[list[str], list[RawObject], Counter[str]]:
    """The faults that `policy` does not settle box by box, the objects that stay, and what was done to them."""
    assert image.size is not None
    height, width = image.size
    faults: list[str] = []
    objects: list[RawObject] = []
    counts: Counter[str] = Counter()
    for item in image.objects:
        fault = item.problem or _box_fault(item.box, image.size, min_side)
        x1, y1, x2, y2 = item.box
        inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if fault is None:
            counts[f"box cut by at most {TOLERANCE:g} px"] += inside != item.box
            objects.append(replace(item, box=inside))
        elif policy == "drop_box":
            counts["box dropped"] += 1
        elif policy == "clip" and item.problem is None:
            mendable = _box_fault(item.box, None, min_side) is None and _box_fault(inside, None, 0.0) is None
            counts["box clipped" if mendable else "box dropped"] += 1
            if mendable:
                objects.append(replace(item, box=inside))
        else:
            faults.append(f"{image.where}: {item.where}: {fault}")
    return faults, objects, counts


def _box_fault(box: Box, size: Size | None, min_side: float) -> str | None:
    """What is wrong with a box, or None. With a size, the box must also lie inside the image."""
    x1, y1, x2, y2 = box
    text = f"box x {x1:g} to {x2:g}, y {y1:g} to {y2:g}"
    if not all(map(math.isfinite, box)):
        return f"{text} is not finite"
    if x2 - x1 <= min_side or y2 - y1 <= min_side:
        least = f"more than {min_side:g} px" if min_side else "more than 0"
        return f"{text} is empty: width and height must be {least}"
    if size is not None:
        height, width = size
        beyond = max(-x1, -y1, x2 - width, y2 - height)
        if beyond > TOLERANCE or min(x2, y2, width - x1, height - y1) <= 0:
            return f"{text} leaves the image, {width} x {height} (w x h)"
    return None


def _size_fault(image: RawImage, size: Size) -> str | None:
    if image.size is None or image.size == size:
        return None
    height, width = image.size
    turned = " (the sides are swapped: is its EXIF orientation right?)" if image.size == size[::-1] else ""
    return (
        f"says {width} x {height} (w x h), but the upright picture {image.path} is {size[1]} x {size[0]}{turned}; "
        "annotate the picture as it is seen"
    )


def upright_size(path: str, decode: bool) -> Size | str:
    """(h, w) of the picture with its EXIF orientation applied, or what is wrong with the file.

    Pillow decodes because it reports a truncated file, for which OpenCV returns a picture with a grey rest.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            if decode:
                picture.draft("RGB", (width // 8, height // 8))  # a JPEG is read in full and computed at 1/8
                picture.load()
    except FileNotFoundError:
        return f"the picture {path} does not exist"
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        return f"the picture {path} cannot be decoded: {error}; replace the file"
    return (width, height) if turned else (height, width)


def _report(name: str, problems: Sequence[str]) -> str:
    more = [f"... and {len(problems) - MAX_LINES} more"] if len(problems) > MAX_LINES else []
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{name}: {count}", *(f"  {line}" for line in [*problems[:MAX_LINES], *more]), _POLICIES])

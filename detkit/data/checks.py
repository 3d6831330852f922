"""The check of every data set before training.

The readers turn their files into `RawImage` records. `check_images` opens every picture, looks at every box and applies
the policy of the configuration. Whatever it repairs or drops is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from detkit.config import Config, PathText, UserError
from detkit.data.check_cache import picture_sizes
from detkit.structures import ImageId, Size

LabelPolicy = Literal["raise", "clip", "drop_box", "drop_image"]
Box = tuple[float, float, float, float]

TOLERANCE = 1.0  # px that a box may reach over the border of its image, as in files that count from 0 or round up
ROUNDING = 1e-3  # px that shares of a picture, written with a few digits, are off; cut without being counted
MAX_LINES = 10  # problems that one message lists
MOVED = f"keypoint moved by at most {TOLERANCE:g} px"
OUTSIDE = "keypoint outside the picture read as not labelled"

_POLICIES = (
    "Correct the files, or set data.on_bad_label: clip (cut boxes to the image and drop those left empty), drop_box, "
    "or drop_image (also for pictures that cannot be read)."
)


class DataError(UserError):
    """A data set that cannot be used as it is. The message names the file, the object and the fix."""


class NoValidation(DataError):
    """The data set has no validation split: one can train on it without measuring."""


class FilesConfig(Config):
    """Settings of every data set that is read from files.

    root          folder of the data set
    classes       the classes to learn, in this order; objects of others are left out and counted. null: all there are
    merge         {name: [names]}: classes that become one, as {vehicle: [car, van]}, before `classes` chooses
    on_bad_label  `raise` lists the problems and stops. `clip` cuts boxes to the image and drops those left empty.
                  `drop_box` drops the object. `drop_image` drops the image, also if its file is missing or unreadable
    check_images  decode every picture once before training; false reads only the headers of the files
    """

    has_videos: ClassVar[bool] = False  # whether its images are frames of videos

    root: PathText
    classes: tuple[str, ...] | None = None
    merge: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    on_bad_label: LabelPolicy = "raise"
    check_images: bool = True

    @field_validator("classes")
    @classmethod
    def _names_once_each(cls, names: Any) -> Any:
        if isinstance(names, tuple) and (not names or len(set(names)) < len(names)):
            raise ValueError(f"expected different names, at least one, got {list(names)}")
        return names

    @field_validator("merge")
    @classmethod
    def _in_one_class(cls, merge: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        names = [name for olds in merge.values() for name in olds]
        if len(set(names)) < len(names):
            raise ValueError(f"expected each class once, got {Counter(names).most_common(1)[0][0]!r} twice")
        return merge


@dataclass(frozen=True, slots=True)
class RawObject:
    """One object as its file has it.

    where    its name in messages: `object 3 (dog)`, `annotation 1768`
    label    index into the categories; -1 where there is none, see `problem`
    box      xyxy in continuous pixels
    problem  why the reader could not read the object, with the fix
    columns  its values in the other columns of `Objects`, known or extra, by name. A column that any object has becomes
             a column of the data set (see `ImageDataset`). `masks` is what `EncodedMasks.of` takes: polygons in px, the
             compressed run lengths of COCO as bytes, or None
    """

    where: str
    label: int
    box: Box
    problem: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


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


# The type of `check_images`: images, name, policy, decode, min_side -> checked images, counts
Check = Callable[[Sequence[RawImage], str, LabelPolicy, bool, float], tuple[list[RawImage], Counter[str]]]


def check_images(
    images: Sequence[RawImage], name: str, policy: LabelPolicy, decode: bool, min_side: float = 0.0
) -> tuple[list[RawImage], Counter[str]]:
    """The images with their true sizes and with boxes inside them, and counts of what the policy changed.

    A box is right if it is finite, wider and higher than `min_side` px and reaches at most `TOLERANCE` px over the
    border; the overhang is cut off and counted. Keypoints are moved onto the picture as far; one that is farther away
    is not labelled any more, which is counted and no problem. A mask is cut where it is drawn. Raises DataError listing
    every problem that the policy does not settle.
    """
    checked: list[RawImage] = []
    counts: Counter[str] = Counter()
    problems: list[str] = []
    dropped: list[str] = []
    sizes = picture_sizes([image.path for image in images], decode, name)
    sound = _sound_images(images, sizes, min_side)
    for image, size, is_sound in zip(images, sizes, sound, strict=True):
        if is_sound and isinstance(size, tuple):
            checked.append(replace(image, size=size))
            continue
        checked_image, changes, faults = _check_image(image, size, policy, min_side)
        if faults and policy == "drop_image":
            counts["image dropped"] += 1
            dropped += faults
            continue
        counts += changes
        problems += faults
        checked.append(checked_image)
    if problems:
        raise DataError(_report(name, problems))
    if not checked:
        first = f", the first because: {dropped[0]}" if dropped else ""
        raise DataError(f"{name}: no image is left; on_bad_label: {policy} dropped all {len(images)}{first}")
    return checked, counts


def _sound_images(images: Sequence[RawImage], sizes: Sequence[Size | str], min_side: float) -> list[bool]:
    """For each image, whether nothing is wrong with it and no box has to be cut: of most images, and in one go."""
    objects = [item for image in images for item in image.objects]
    counts = np.array([len(image.objects) for image in images], np.int64)
    index = np.repeat(np.arange(len(images)), counts)  # the image of each object
    known = np.array([(0, 0) if isinstance(size, str) else size for size in sizes], np.float64).reshape(-1, 2)
    height, width = known[index].T
    x1, y1, x2, y2 = np.array([item.box for item in objects], np.float64).reshape(-1, 4).T
    with np.errstate(invalid="ignore"):  # a box that is not finite is not sound
        sound = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x2 - x1 > min_side) & (y2 - y1 > min_side)
    sound &= np.array([item.problem is None for item in objects], np.bool_)
    for row, item in enumerate(objects):
        if sound[row] and "keypoints" in item.columns:
            sound[row] = not np.any(_outside(np.asarray(item.columns["keypoints"]), known[index[row]]))
    unsound = set(index[~sound].tolist())
    return [
        not (image.problem or isinstance(size, str) or _size_fault(image, size)) and number not in unsound
        for number, (image, size) in enumerate(zip(images, sizes, strict=True))
    ]


def _check_image(
    image: RawImage, size: Size | str, policy: LabelPolicy, min_side: float
) -> tuple[RawImage, Counter[str], list[str]]:
    """The image with its true size and checked objects, counts of what was changed, and the problems that remain.

    size  (h, w) of the upright picture, or why it cannot be read
    """
    fault = image.problem or (size if isinstance(size, str) else _size_fault(image, size))
    if fault is not None or isinstance(size, str):
        return replace(image, objects=()), Counter(), [f"{image.where}: {fault}"]
    objects: list[RawObject] = []
    changes: Counter[str] = Counter()
    faults: list[str] = []
    for item in image.objects:
        box, change, fault = _check_object(item, size, policy, min_side)
        if fault is not None:
            faults.append(f"{image.where}: {item.where}: {fault}")
        if change is not None:
            changes[change] += 1
        if box is not None:
            columns, moves = _keypoints_inside(item, size)
            changes += moves
            objects.append(replace(item, box=box, columns=columns))
    return replace(image, size=size, objects=objects), changes, faults


def _check_object(
    item: RawObject, size: Size, policy: LabelPolicy, min_side: float
) -> tuple[Box | None, str | None, str | None]:
    """The box inside the image or None if the object is dropped, the change to count, and the problem that remains."""
    (height, width), (x1, y1, x2, y2) = size, item.box
    fault = item.problem or _box_fault(item.box, size, min_side)
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if fault is None:
        cut = max(abs(a - b) for a, b in zip(inside, item.box, strict=True))
        return inside, f"box cut by at most {TOLERANCE:g} px" if cut > ROUNDING else None, None
    if policy == "clip" and item.problem is None:
        if _box_fault(item.box, None, min_side) is None and _box_fault(inside, None, 0.0) is None:
            return inside, "box clipped", None
        return None, "box dropped", None
    if policy == "drop_box":
        return None, "box dropped", None
    return None, None, fault


def _outside(keypoints: np.ndarray, size: Any) -> np.ndarray:
    """float `[P]`: how many px each labelled one of keypoints `[P, 3]` is outside the picture of `size` (h, w)."""
    limits = np.asarray(size, np.float64)[::-1]
    distance: np.ndarray = np.maximum(-keypoints[:, :2], keypoints[:, :2] - limits).max(axis=1)
    return np.where(keypoints[:, 2] > 0, distance.clip(0), 0)


def _keypoints_inside(item: RawObject, size: Size) -> tuple[Mapping[str, Any], Counter[str]]:
    """The columns of an object with its keypoints on the picture, and counts of what was changed."""
    if "keypoints" not in item.columns:
        return item.columns, Counter()
    keypoints = np.array(item.columns["keypoints"], np.float32)
    distances = _outside(keypoints, size)
    keypoints[:, :2] = keypoints[:, :2].clip(0, size[::-1])
    keypoints[~(distances <= TOLERANCE) | (keypoints[:, 2] == 0)] = 0
    changes = {
        MOVED: int(((distances > ROUNDING) & (distances <= TOLERANCE)).sum()),
        OUTSIDE: int((~(distances <= TOLERANCE)).sum()),
    }
    return {**item.columns, "keypoints": keypoints}, Counter(changes)


def _box_fault(box: Box, size: Size | None, min_side: float) -> str | None:
    """The problem of a box, or None. Where `size` is given, the box must also lie inside the image."""
    x1, y1, x2, y2 = box
    text = f"box x {x1:g} to {x2:g}, y {y1:g} to {y2:g}"
    if not all(map(math.isfinite, box)):
        return f"{text} is not finite"
    if x2 - x1 <= min_side or y2 - y1 <= min_side:
        minimum = f"more than {min_side:g} px" if min_side else "more than 0"
        return f"{text} is empty: width and height must be {minimum}"
    if size is not None:
        height, width = size
        overhang = max(-x1, -y1, x2 - width, y2 - height)
        if overhang > TOLERANCE or min(x2, y2, width - x1, height - y1) <= 0:
            return f"{text} leaves the image, {width} x {height} (w x h)"
    return None


def _size_fault(image: RawImage, size: Size) -> str | None:
    """How the annotated size disagrees with the picture's, or None."""
    if image.size is None or image.size == size:
        return None
    height, width = image.size
    turned = " (the sides are swapped: is its EXIF orientation right?)" if image.size == size[::-1] else ""
    return (
        f"says {width} x {height} (w x h), but the upright picture {image.path} is {size[1]} x {size[0]}{turned}; "
        "annotate the upright picture"
    )


def _report(name: str, problems: Sequence[str]) -> str:
    more = [f"... and {len(problems) - MAX_LINES} more"] if len(problems) > MAX_LINES else []
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  ".join([f"{name}: {count}", *problems[:MAX_LINES], *more, _POLICIES])

"""The layout of darknet's descendants: data.yaml, `images/train/a.jpg` with `labels/train/a.txt`.

A line has room for a mask or for keypoints, not for both. Where a data set has keypoints, every line has them, as the
tools expect, and masks are left out. Else an object with a mask is a polygon, one line an object: the parts of a mask
are joined by lines there and back, and so is a hole with the border around it. An object without a mask stays a box.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detkit.data.writers.pictures import Picture
from detkit.files import write_text
from detkit.formats import yolo_line
from detkit.structures import Categories, EncodedMasks
from detkit.structures.mask_outlines import mask_outline

ONE_FOLDER = False
IGNORED = "object marked as ignored (difficult or a crowd), which YOLO cannot do"
REPEATED = "object repeated, which YOLO reads once"
MASKS = "mask beside keypoints, of which YOLO has one"
OTHER_BOX = "box that is not the one around its mask, of which YOLO has the mask"
SKELETON = "skeleton, which YOLO cannot hold"
BOX_TOLERANCE = 1.0  # px between a box and the one around its mask


def write(folder: Path, splits: Mapping[str, Sequence[Picture]], categories: Categories, lost: Counter[str]) -> None:
    """A picture without objects gets an empty label file. Ignored objects are left out."""
    for split, pictures in splits.items():
        for picture in pictures:
            path = folder / "labels" / split / f"{picture.name.rpartition('.')[0]}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = _lines(picture, categories, lost)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    content: dict[str, Any] = {
        **{split: picture_path(split, "").rstrip("/") for split in splits},
        "nc": len(categories),
        "names": list(categories.names),
    }
    if categories.keypoints is not None:
        content |= _keypoints_of(categories, lost)
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def picture_path(split: str, name: str) -> str:
    return f"images/{split}/{name}"


def settings(folder: Path, splits: Sequence[str], _: Categories) -> dict[str, Any]:
    """The section `data` of a configuration."""
    train = "train" if "train" in splits else splits[0]
    val = next((name for name in ("val", "test") if name in splits and name != train), None)
    return {"name": "yolo", "root": str(folder), "train": train, "val": val}


def _keypoints_of(categories: Categories, lost: Counter[str]) -> dict[str, Any]:
    """What data.yaml says about keypoints; their names are those of every class."""
    assert categories.keypoints is not None
    names = list(categories.keypoints.names)
    order = list(range(len(names)))
    for one, other in categories.keypoints.flip_pairs:
        order[one], order[other] = other, one
    lost[SKELETON] += bool(categories.keypoints.skeleton)
    point_names = {label: names.copy() for label in range(len(categories))}  # YAML would refer to one list by a sign
    return {"kpt_shape": [len(names), 3], "flip_idx": order, "kpt_names": point_names}


def _lines(picture: Picture, categories: Categories, lost: Counter[str]) -> list[str]:
    objects, size = picture.truth.objects, picture.truth.size
    lost[IGNORED] += int(objects.ignore.sum())
    objects = objects.take(~objects.ignore)
    masks = objects.masks if isinstance(objects.masks, EncodedMasks) else None
    points: np.ndarray | None = None
    if categories.keypoints is not None:
        shape = (len(objects), len(categories.keypoints.names), 3)
        points = np.zeros(shape) if objects.keypoints is None else objects.keypoints
        lost[MASKS] += 0 if masks is None else int(masks.kinds.astype(bool).sum())
    lines = []
    for row, (label, box) in enumerate(zip(objects.labels.tolist(), objects.boxes.tolist(), strict=True)):
        outline = mask_outline(masks, row) if masks is not None and points is None else None
        if outline is not None:
            around = np.concatenate([outline.min(axis=0), outline.max(axis=0)]).clip(0, (*size[::-1], *size[::-1]))
            lost[OTHER_BOX] += bool((abs(around - box) > BOX_TOLERANCE).any())
        lines.append(yolo_line(label, box, size, None if points is None else points[row].tolist(), outline))
    once = list(dict.fromkeys(lines))
    lost[REPEATED] += len(lines) - len(once)
    return once

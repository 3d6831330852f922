"""PASCAL VOC's layout: `VOC2007` with JPEGImages, Annotations, ImageSets/Main and, of pictures with masks,
SegmentationObject. The year is only a name.

The order of the classes is in `labelmap.txt`, in the form in which CVAT writes it beside its own export.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.voc_segmentation import MAX_OBJECTS, write_objects
from detkit.data.writers.pictures import Picture
from detkit.files import write_text
from detkit.formats import VOC_DECIMALS, VOC_MIN_SIDE, voc_xml
from detkit.structures import Categories, EncodedMasks, Size

ONE_FOLDER = True
DEVKIT = "VOC2007"
LABELMAP = "labelmap.txt"
TOO_SMALL = "object of at most 1 px, which VOC cannot hold"
OVERLAP = "mask that another one covers in part: VOC has one object a pixel"
TOO_MANY = f"mask beside {MAX_OBJECTS} others in a picture, which VOC cannot hold"
KEYPOINTS = "object with keypoints, which VOC cannot hold"


def write(folder: Path, splits: Mapping[str, Sequence[Picture]], categories: Categories, lost: Counter[str]) -> None:
    """Ignored objects are difficult. A corner that is no whole number is written with its decimals."""
    devkit = folder / DEVKIT
    for split, pictures in splits.items():
        lines = [picture.name.rpartition(".")[0] for picture in pictures]
        (devkit / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        write_text(devkit / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{line}\n" for line in lines))
    for name, picture in {picture.name: picture for each in splits.values() for picture in each}.items():
        path = devkit / "Annotations" / f"{name.rpartition('.')[0]}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        base, objects = picture.name.rpartition("/")[2], picture.truth.objects
        text, too_small = voc_xml(base, picture.truth.size, replace(objects, masks=None), categories.names)
        lost[TOO_SMALL] += too_small
        if objects.keypoints is not None:
            lost[KEYPOINTS] += int((objects.keypoints[..., 2] > 0).any(axis=1).sum())
        if isinstance(objects.masks, EncodedMasks) and objects.masks.kinds.any():
            text = text.replace("<segmented>0<", "<segmented>1<")
            file = devkit / "SegmentationObject" / f"{name.rpartition('.')[0]}.png"
            _write_masks(file, picture.truth.size, objects.masks[_large_enough(objects.boxes)], lost)
        path.write_text(text, encoding="utf-8")
    header = "# label:color_rgb:parts:actions\n"
    write_text(folder / LABELMAP, header + "".join(f"{name}:::\n" for name in categories.names))


def _large_enough(boxes: np.ndarray) -> np.ndarray:
    """bool `[N]`: the objects that `voc_xml` writes, whose numbers are the values of the pixels."""
    corners = boxes.astype(np.float64).round(VOC_DECIMALS)
    large: np.ndarray = ((corners[:, 2:] - corners[:, :2]) > VOC_MIN_SIDE).all(axis=1)
    return large


def _write_masks(path: Path, size: Size, masks: EncodedMasks, lost: Counter[str]) -> None:
    lost[TOO_MANY] += int(masks.kinds[MAX_OBJECTS:].astype(bool).sum())
    lost[OVERLAP] += write_objects(path, size, masks[:MAX_OBJECTS].crops())


def read_labelmap(folder: Path) -> list[str]:
    """The classes in their order; empty if there is no such file."""
    try:
        lines = (folder / LABELMAP).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    names = [line.rsplit(":", 3)[0].strip() for line in lines if line.count(":") >= 3 and line[0] != "#"]
    return [name for name in names if name and name != "background"]


def picture_path(_: str, name: str) -> str:
    return f"{DEVKIT}/JPEGImages/{name}"


def settings(folder: Path, splits: Sequence[str], categories: Categories) -> dict[str, Any]:
    """The section `data` of a configuration."""
    train = "train" if "train" in splits else splits[0]
    val = next((name for name in ("val", "test") if name in splits and name != train), None)
    year = DEVKIT.removeprefix("VOC")
    return {
        "name": "voc",
        "root": str(folder),
        "train": [f"{year}_{train}"],
        "val": [f"{year}_{val}"] if val else [],
        "classes": list(categories.names),
    }

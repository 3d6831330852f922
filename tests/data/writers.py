"""Small data sets on disk for the tests of the readers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detkit.data.checks import RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.structures import Categories

Box = tuple[float, float, float, float]


def write_picture(path: Path, size: tuple[int, int] = (40, 60), value: int = 120) -> None:
    """A flat colour picture of `size` (h, w)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def voc_object(name: str, corners: Sequence[Any], difficult: int | str | None = None) -> str:
    tags = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{tags}</bndbox></object>"


def write_voc(
    root: Path,
    images: dict[str, Sequence[str]],
    *,
    year: str = "2007",
    lists: Sequence[str] = ("train", "val"),
    size: tuple[int, int] = (40, 60),
) -> Path:
    """A devkit of flat pictures; `images` maps an id to its <object> elements. Returns the folder of the year."""
    folder = root / f"VOC{year}"
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for name in lists:
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(images) + "\n")
    for stem, objects in images.items():
        write_picture(folder / "JPEGImages" / f"{stem}.jpg", size)
        (folder / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{stem}.jpg</filename>"
            f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
            f"{''.join(objects)}</annotation>"
        )
    return folder


def coco_content(**changes: Any) -> dict[str, Any]:
    """Two images, three annotations (one a crowd), category ids with a gap and out of order."""
    content: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 60, "height": 40},
            {"id": 0, "file_name": "b.jpg", "width": 60, "height": 40},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10], "area": 150.5, "iscrowd": 0},
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "area": 99, "iscrowd": 1},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [1.5, 2.5, 4, 6]},
        ],
    }
    return {**content, **changes}


def write_coco(root: Path, content: dict[str, Any], *, split: str = "train") -> Path:
    """Flat pictures and one JSON file; returns the JSON file."""
    for image in content.get("images", []):
        write_picture(root / f"{split}2017" / str(image.get("file_name")))
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def make_dataset(
    folder: Path, sizes: Sequence[tuple[int, int]], boxes: Sequence[Box] = ((2, 3, 12, 13),)
) -> ImageDataset:
    """Noise pictures of the given sizes (h, w), each with the same boxes of class 0; image_id = index."""
    images = []
    for index, size in enumerate(sizes):
        path = folder / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(index).integers(0, 256, (*size, 3)).astype(np.uint8))
        objects = [RawObject(f"object {n}", 0, box) for n, box in enumerate(boxes)]
        images.append(RawImage(index, str(path), str(path), size, objects))
    return ImageDataset(images, name="noise", categories=Categories.of_names(["thing"]))


def write_yolo(
    root: Path, labels: dict[str, str | None], *, names: Any = ("dog", "cat"), split: str = "train", **keys: Any
) -> Path:
    """Flat pictures of 40 x 60 (h, w) in images/SPLIT and the text of their label files, None for no such file.

    Returns the folder of the label files; data.yaml has train, val, `names` and `keys`.
    """
    root.mkdir(parents=True, exist_ok=True)
    content = {"train": "images/train", "val": "images/val", "names": names, **keys}
    (root / "data.yaml").write_text(json.dumps(content))  # which is YAML
    folder = root / "labels" / split
    folder.mkdir(parents=True, exist_ok=True)
    for stem, text in labels.items():
        write_picture(root / "images" / split / f"{stem}.jpg")
        if text is not None:
            (folder / f"{stem}.txt").write_text(text)
    return folder

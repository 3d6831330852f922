"""Supervisely's project: meta.json, and folders of data sets with `img/NAME` and `ann/NAME.json`.

Its pixels are inclusive: a rectangle of the points 10 and 12 is three pixels wide.
"""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

from detkit.data.checks import Box, DataError
from detkit.data.foreign.collect import ForeignData, around_points, size_of, split_of
from detkit.data.foreign.files import load

SHAPES = ("rectangle", "polygon", "bitmap")


def fits(content: Any) -> bool:
    classes = content.get("classes") if isinstance(content, dict) else None
    return isinstance(classes, list) and all(isinstance(each, dict) and "title" in each for each in classes)


def read(content: dict[str, Any], file: Path, split: str, data: ForeignData) -> None:
    """Raises DataError for a project of videos."""
    if content.get("projectType", "images") != "images":
        raise DataError(f"{file}: is a project of {content['projectType']}, which are not read; only images are")
    data.names += [each["title"] for each in content["classes"] if each["title"] not in data.names]
    for annotation in sorted(file.parent.rglob("ann/*.json")):
        folder = annotation.parent.parent
        own = split_of(folder.relative_to(file.parent)) if folder != file.parent else split
        _read_picture(load(annotation), annotation, own, data)


def _read_picture(content: dict[str, Any], file: Path, split: str, data: ForeignData) -> None:
    tags = [str(tag.get("name")) for tag in content.get("tags") or []]
    split = next((tag for tag in tags if tag in ("train", "val", "test")), split)
    data.lost["picture with tags"] += any(tag not in ("train", "val", "test") for tag in tags)
    objects = []
    for index, item in enumerate(content.get("objects") or [], start=1):
        kind = str(item.get("geometryType") or ("bitmap" if item.get("bitmap") else "polygon"))
        if not data.has_box(kind, "rectangle", SHAPES):
            continue
        data.lost["object with tags"] += bool(item.get("tags"))
        objects.append(data.object(f"object {index}", item.get("classTitle"), _box(item, kind)))
    size = content.get("size") or {}
    folder, name = file.parent.parent / "img", file.name.removesuffix(".json")
    if not (folder / name).exists():  # old projects leave out the suffix of the picture
        name = next((path.name for path in sorted(folder.glob("*")) if path.stem == name), name)
    data.add(split, name, [folder], file, objects, size_of(size.get("height"), size.get("width")))


def _box(item: dict[str, Any], kind: str) -> Box | None:
    if kind == "bitmap":
        x, y = item["bitmap"]["origin"]
        mask = Image.open(io.BytesIO(zlib.decompress(base64.b64decode(item["bitmap"]["data"]))))
        return float(x), float(y), float(x + mask.width), float(y + mask.height)
    box = around_points((item.get("points") or {}).get("exterior"))
    return None if box is None else (box[0], box[1], box[2] + 1, box[3] + 1)

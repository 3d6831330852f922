"""Supervisely's project: meta.json, and folders of data sets with `img/NAME` and `ann/NAME.json`.

Its pixels are inclusive: a rectangle of the points 10 and 12 is three pixels wide.
"""

from __future__ import annotations

import base64
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detkit.data.checks import Box, DataError
from detkit.data.foreign.collect import ForeignData, around_points, polygon_of, size_of, split_of
from detkit.data.foreign.files import load
from detkit.structures import MaskCrops, Size

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
    size = size_of(*((content.get("size") or {}).get(key) for key in ("height", "width")))
    for index, item in enumerate(content.get("objects") or [], start=1):
        kind = str(item.get("geometryType") or ("bitmap" if item.get("bitmap") else "polygon"))
        if not data.has_box(kind, ("rectangle", "polygon", "bitmap"), SHAPES):
            continue
        data.lost["object with tags"] += bool(item.get("tags"))
        mask = _mask(item, kind, size)
        data.lost["hole of a polygon, of which only the box is left"] += kind == "polygon" and not mask
        objects.append(data.object(f"object {index}", item.get("classTitle"), _box(item, kind), mask=mask))
    folder, name = file.parent.parent / "img", file.name.removesuffix(".json")
    if not (folder / name).exists():  # old projects leave out the suffix of the picture
        name = next((path.name for path in sorted(folder.glob("*")) if path.stem == name), name)
    data.add(split, name, [folder], file, objects, size)


def _mask(item: dict[str, Any], kind: str, size: Size | None) -> list[np.ndarray | None] | bytes:
    """Polygons through the middles of their pixels, or the run lengths of a bitmap; empty for neither."""
    points = item.get("points") or {}
    if kind == "polygon" and not points.get("interior"):
        polygon = polygon_of(points.get("exterior"))
        return [None if polygon is None else polygon + 0.5]
    if kind != "bitmap" or size is None:
        return []
    (x, y), pixels = item["bitmap"]["origin"], _pixels(item)
    height, width = pixels.shape
    if x < 0 or y < 0 or x + width > size[1] or y + height > size[0]:  # its box is a problem
        return []
    encoded = MaskCrops.of([pixels], [(x, y, x + width, y + height)]).encode(size).decode(0)
    return encoded if isinstance(encoded, bytes) else []


def _pixels(item: dict[str, Any]) -> np.ndarray:
    """bool `[h, w]` of a bitmap, which is a PNG whose pixels are the object where they are not transparent or 0."""
    picture = Image.open(io.BytesIO(zlib.decompress(base64.b64decode(item["bitmap"]["data"]))))
    pixels = np.asarray(picture.convert("RGBA") if picture.mode == "P" else picture)
    return np.asarray((pixels if pixels.ndim == 2 else pixels[..., -1]) > 0)


def _box(item: dict[str, Any], kind: str) -> Box | None:
    if kind == "bitmap":
        x, y = item["bitmap"]["origin"]
        height, width = _pixels(item).shape
        return float(x), float(y), float(x + width), float(y + height)
    box = around_points((item.get("points") or {}).get("exterior"))
    return None if box is None else (box[0], box[1], box[2] + 1, box[3] + 1)

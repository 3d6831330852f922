"""LabelMe's JSON: a file a picture, with shapes of named points.

A rectangle is two opposite corners, a circle its centre and a point of its rim, a mask its first and last pixel.
Shapes of one class and one `group_id` are one object.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.checks import Box
from detkit.data.foreign.collect import ForeignData, around, around_points, polygon_of, size_of
from detkit.data.picture_names import find
from detkit.data.pictures import IMAGE_SUFFIXES

SHAPES = ("rectangle", "oriented_rectangle", "polygon", "circle", "mask")


def fits(content: Any) -> bool:
    return isinstance(content, dict) and "imagePath" in content and isinstance(content.get("shapes"), list)


def read(content: dict[str, Any], file: Path, split: str, data: ForeignData) -> None:
    groups: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for index, shape in enumerate(content["shapes"]):
        kind = shape.get("shape_type") or "polygon"
        if not data.has_box(kind, ("rectangle", "polygon"), SHAPES):
            continue
        data.lost["shape with flags"] += any((shape.get("flags") or {}).values())
        data.lost["shape with a description"] += bool(shape.get("description"))
        group = shape.get("group_id")
        groups[index if group is None else (shape.get("label"), group)].append(shape)
    data.lost["picture with flags"] += any((content.get("flags") or {}).values())
    data.notes["object of several shapes"] += sum(len(shapes) > 1 for shapes in groups.values())
    objects = [
        data.object(
            f"object {index}",
            shapes[0].get("label"),
            _around_all([_box(shape) for shape in shapes]),
            mask=[_polygon(shape) for shape in shapes],
        )
        for index, shapes in enumerate(groups.values(), start=1)
    ]
    size = size_of(content.get("imageHeight"), content.get("imageWidth"))
    data.add(split, _picture(content, file, data), [file.parent, file.parent.parent], file, objects, size)


def _picture(content: dict[str, Any], file: Path, data: ForeignData) -> str:
    """The name of the picture: `imagePath`, or one called like the file where that is not here."""
    name = str(content["imagePath"] or "")
    beside = [file.with_suffix(suffix) for suffix in IMAGE_SUFFIXES if file.with_suffix(suffix).is_file()]
    path, _ = find(name, [file.parent, file.parent.parent]) if name else (None, True)
    if beside and (path is None or path.stem != file.stem):  # a copied file still names the picture it was copied from
        data.notes["file with another picture's imagePath paired by its own name"] += 1
        return beside[0].name
    return name


def _polygon(shape: dict[str, Any]) -> np.ndarray | None:
    """None for another shape: an object of which a part is no polygon has only a box."""
    return polygon_of(shape.get("points")) if (shape.get("shape_type") or "polygon") == "polygon" else None


def _box(shape: dict[str, Any]) -> Box | None:
    points, kind = shape.get("points"), shape.get("shape_type")
    box = around_points(points)
    if box is None or not isinstance(points, list):
        return None
    if kind == "circle" and len(points) == 2:
        (x, y), (rim_x, rim_y) = points
        radius = math.hypot(rim_x - x, rim_y - y)
        return x - radius, y - radius, x + radius, y + radius
    return (box[0], box[1], box[2] + 1, box[3] + 1) if kind == "mask" else box


def _around_all(boxes: list[Box | None]) -> Box | None:
    known = [box for box in boxes if box is not None]
    if len(known) < len(boxes):
        return None
    return around([x for box in known for x in box[::2]], [y for box in known for y in box[1::2]])

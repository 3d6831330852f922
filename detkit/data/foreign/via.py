"""VIA's JSON (version 2, and the regions of version 1): a project, or its annotations alone.

A region has `shape_attributes` (rect, polygon, polyline, circle, ellipse, point) and `region_attributes`, one of which
is the class.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.checks import Box, DataError
from detkit.data.foreign.collect import ForeignData, around, ellipse, number, polygon_of

CLASS_NAMES = (
    "class",
    "class_name",
    "classname",
    "label",
    "name",
    "type",
    "category",
    "object",
    "object_name",
    "species",
)
SHAPES = ("rect", "polygon", "circle", "ellipse")


def fits(content: Any) -> bool:
    rows = _rows(content)
    return bool(rows) and all(isinstance(row, dict) and "filename" in row and "regions" in row for row in rows)


def read(content: dict[str, Any], file: Path, split: str, data: ForeignData) -> None:
    """Raises DataError if no attribute of the regions is the class, or if it is not clear which."""
    rows = _rows(content)
    attribute = _class_attribute(rows, file)
    known = (content.get("_via_attributes") or {}).get("region") or {}
    data.names += [name for name in (known.get(attribute) or {}).get("options") or {} if name not in data.names]
    for row in rows:
        objects = []
        for index, region in enumerate(_regions(row), start=1):
            shape, attributes = region.get("shape_attributes") or {}, region.get("region_attributes") or {}
            if not data.has_box(str(shape.get("name")), ("rect", "polygon"), SHAPES):
                continue
            data.lost["region with further attributes"] += any(v for key, v in attributes.items() if key != attribute)
            names = _values(attributes.get(attribute))
            data.notes["region of several classes read as an object of each"] += len(names) > 1
            mask = [_polygon(shape)] if shape.get("name") == "polygon" else ()
            objects += [data.object(f"region {index}", name, _box(shape), mask=mask) for name in names or [None]]
        data.lost["picture with attributes"] += any((row.get("file_attributes") or {}).values())
        data.add(split, str(row["filename"]), [file.parent, file.parent / "images"], file, objects)


def _rows(content: Any) -> list[Any]:
    table = content.get("_via_img_metadata", content) if isinstance(content, dict) else {}
    return list(table.values()) if isinstance(table, dict) else []


def _regions(row: dict[str, Any]) -> list[dict[str, Any]]:
    regions = row["regions"] or []
    return list(regions.values()) if isinstance(regions, dict) else regions


def _class_attribute(rows: list[Any], file: Path) -> str:
    """The only attribute of the regions, or the only one with a usual name."""
    attributes = dict.fromkeys(
        key for row in rows for region in _regions(row) for key in region.get("region_attributes") or {}
    )
    usual = [key for key in attributes if key.lower() in CLASS_NAMES]
    chosen = list(attributes) if len(attributes) == 1 else usual
    if attributes and len(chosen) != 1:
        raise DataError(
            f"{file}: which region attribute is the class? found {', '.join(attributes)}; call it 'class' and rename "
            "others that are called so"
        )
    return chosen[0] if chosen else "class"


def _values(value: Any) -> list[Any]:
    """The classes of a region; a checkbox has several, as `{"cat": true}`."""
    if isinstance(value, dict):
        return [name for name, chosen in value.items() if chosen]
    return [] if value in (None, "") else [value]


def _polygon(shape: dict[str, Any]) -> np.ndarray | None:
    return polygon_of(list(zip(shape.get("all_points_x") or (), shape.get("all_points_y") or (), strict=False)))


def _box(shape: dict[str, Any]) -> Box | None:
    kind = shape.get("name")
    if kind == "polygon":
        return around(shape.get("all_points_x") or (), shape.get("all_points_y") or ())
    if kind == "circle":
        return ellipse(shape.get("cx"), shape.get("cy"), shape.get("r"), shape.get("r"))
    if kind == "ellipse":
        radians = number(shape.get("theta", 0.0))
        angle = None if radians is None else math.degrees(radians)
        return ellipse(shape.get("cx"), shape.get("cy"), shape.get("rx"), shape.get("ry"), angle)
    values = [number(shape.get(key)) for key in ("x", "y", "width", "height")]
    if kind != "rect" or None in values:
        return None
    x, y, width, height = (value or 0.0 for value in values)
    return x, y, x + width, y + height

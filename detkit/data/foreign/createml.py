"""CreateML's JSON: a list of pictures with boxes in pixels, given by their centre."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detkit.data.checks import Box
from detkit.data.foreign.collect import ForeignData, around, number

PICTURE_KEYS = ("image", "imagefilename", "filename")


def fits(content: Any) -> bool:
    """Whether it is a list of pictures with `annotations`, of which the first has `coordinates`."""
    if not isinstance(content, list) or not content or not all(isinstance(row, dict) for row in content):
        return False
    named = all(any(isinstance(row.get(key), str) for key in PICTURE_KEYS) for row in content)
    boxes = [box for row in content for box in row.get("annotations") or row.get("annotation") or []]
    return named and all(isinstance(box, dict) and "coordinates" in box for box in boxes[:1])


def read(content: list[dict[str, Any]], file: Path, split: str, data: ForeignData) -> None:
    for row in content:
        name = next(row[key] for key in PICTURE_KEYS if row.get(key))
        boxes = row.get("annotations") or row.get("annotation") or []
        objects = [
            data.object(f"object {index}", box.get("label"), _box(box.get("coordinates")))
            for index, box in enumerate(boxes, start=1)
        ]
        data.add(split, name, [file.parent, file.parent / "images", file.parent.parent], file, objects)


def _box(coordinates: Any) -> Box | None:
    if not isinstance(coordinates, dict):
        return None
    values = [number(coordinates.get(key)) for key in ("x", "y", "width", "height")]
    if None in values:
        return None
    x, y, width, height = (value or 0.0 for value in values)
    return around((x - width / 2, x + width / 2), (y - height / 2, y + height / 2))

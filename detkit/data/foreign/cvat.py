"""CVAT's XML 1.1 "for images". That for videos has tracks and is refused."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from detkit.data.checks import Box, DataError
from detkit.data.foreign.collect import ForeignData, around, ellipse, number, polygon_of, size_of, split_of, turned

SHAPES = ("box", "polygon", "ellipse", "mask", "cuboid")
NO_BOX_LABELS = ("points", "polyline", "tag", "skeleton")  # types of labels that no box has


def fits(content: Any) -> bool:
    if not isinstance(content, ET.Element) or content.tag != "annotations":
        return False
    return any(content.find(tag) is not None for tag in ("image", "track", "meta"))


def read(content: ET.Element, file: Path, split: str, data: ForeignData) -> None:
    """Raises DataError for a video."""
    if content.find("track") is not None:
        raise DataError(f"{file}: is of a video (it has tracks), which is not read; export it as 'CVAT for images 1.1'")
    for label in content.iterfind("meta/*/labels/label"):
        name = (label.findtext("name") or "").strip()
        if label.find("parent") is None and label.findtext("type") not in NO_BOX_LABELS and name not in data.names:
            data.names += [name] if name else []
    for image in content.iterfind("image"):
        objects = []
        for index, shape in enumerate(image, start=1):
            if not data.has_box(shape.tag, ("box", "polygon"), SHAPES):
                continue
            is_turned = shape.tag == "box" and bool(number(shape.get("rotation")))
            data.lost["box drawn turned, of which the upright one around it is kept"] += is_turned
            data.lost["object with attributes"] += shape.find("attribute") is not None
            data.lost["object marked as occluded"] += shape.get("occluded") == "1"
            mask = [polygon_of(_points(shape))] if shape.tag == "polygon" else ()
            objects.append(data.object(f"{shape.tag} {index}", shape.get("label"), _box(shape), mask=mask))
        subset = image.get("subset")
        own = split_of(Path(subset)) if subset else split
        name, size = image.get("name") or "", size_of(image.get("height"), image.get("width"))
        folders = [file.parent / "images", file.parent / "images" / (subset or ""), file.parent]
        data.add(own, name, folders, file, objects, size)


def _points(shape: ET.Element) -> list[list[str]]:
    return [point.split(",") for point in shape.get("points", "").split(";")]


def _box(shape: ET.Element) -> Box | None:
    values = shape.attrib
    if shape.tag == "polygon":
        points = _points(shape)
        return around([p[0] for p in points], [p[-1] for p in points])
    if shape.tag == "cuboid":
        xs, ys = ([value for key, value in values.items() if key[0] == axis and key[-1] in "12"] for axis in "xy")
        return around(xs, ys)
    angle = values.get("rotation", "0")
    if shape.tag == "ellipse":
        return ellipse(values.get("cx"), values.get("cy"), values.get("rx"), values.get("ry"), angle)
    if shape.tag == "mask":
        left, top, width, height = (number(values.get(key)) for key in ("left", "top", "width", "height"))
        if left is None or top is None or width is None or height is None:
            return None
        return left, top, left + width, top + height
    box = around((values.get("xtl"), values.get("xbr")), (values.get("ytl"), values.get("ybr")))
    return turned(box, angle)

"""The XML of the first LabelMe, which CVAT writes too: polygons and boxes, and masks in files of their own."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from detkit.data.checks import Box
from detkit.data.flags import parse_flag
from detkit.data.foreign.collect import ForeignData, around, polygon_of, size_of

SHAPES = ("box", "polygon", "mask")


def fits(content: Any) -> bool:
    """PASCAL VOC's has the same root, and a <size> instead of <imagesize>."""
    if not isinstance(content, ET.Element) or content.tag != "annotation":
        return False
    return content.find("imagesize") is not None or content.find(".//polygon/pt") is not None


def read(content: ET.Element, file: Path, split: str, data: ForeignData) -> None:
    objects = []
    for index, item in enumerate(content.iterfind("object"), start=1):
        kind = "box" if item.findtext("type") == "bounding_box" else "polygon"
        kind = "mask" if item.find("segm") is not None else kind
        if parse_flag(item.findtext("deleted")) or not data.has_box(kind, ("box", "polygon"), SHAPES):
            continue
        data.lost["object with attributes"] += bool((item.findtext("attributes") or "").strip())
        data.lost["object marked as occluded"] += bool(parse_flag(item.findtext("occluded")))
        points = [(point.findtext("x"), point.findtext("y")) for point in item.findall("polygon/pt")]
        mask = [polygon_of(points)] if kind == "polygon" else ()
        objects.append(data.object(f"object {index}", item.findtext("name"), _box(item), mask=mask))
    size = size_of(content.findtext("imagesize/nrows"), content.findtext("imagesize/ncols"))
    images = file.parents[2] / "Images" if len(file.parents) > 2 else file.parent
    folders = [file.parent, images / file.parent.name, images]
    data.add(split, (content.findtext("filename") or "").strip(), folders, file, objects, size)


def _box(item: ET.Element) -> Box | None:
    box = item.find("segm/box")
    if box is not None:
        xs, ys = ([box.findtext(f"{axis}{end}") for end in ("min", "max")] for axis in "xy")
        return around(xs, ys)
    points = item.findall("polygon/pt")
    return around([point.findtext("x") for point in points], [point.findtext("y") for point in points])

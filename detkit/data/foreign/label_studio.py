"""Label Studio's JSON export: a list of tasks, whose regions are in percent of the picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from detkit.data.checks import Box, RawObject
from detkit.data.foreign.collect import ForeignData, around_points, ellipse, number, polygon_of, size_of, turned
from detkit.data.picture_names import find

SHAPES = ("rectangle", "polygon", "ellipse")
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # the name that Label Studio gives to an uploaded file


def fits(content: Any) -> bool:
    if not isinstance(content, list) or not content or not all(isinstance(task, dict) for task in content):
        return False
    return all(isinstance(task.get("data"), dict) and _annotations(task) is not None for task in content)


def read(content: list[dict[str, Any]], file: Path, split: str, data: ForeignData) -> None:
    folders = [file.parent, file.parent / "images"]
    for task in content:
        done = [each for each in _annotations(task) or [] if not each.get("was_cancelled")]
        chosen = next((each for each in done if each.get("ground_truth")), done[0] if done else {})
        data.lost["annotation by another person of the same picture"] += max(0, len(done) - 1)
        data.lost["prediction"] += len(task.get("predictions") or [])
        if not done:
            data.lost["task without an annotation"] += 1
            continue
        regions = _regions(chosen.get("result") or [], data)
        sizes = {size_of(region.get("original_height"), region.get("original_width")) for region in regions}
        objects = [item for index, each in enumerate(regions, start=1) for item in _objects(each, index, data)]
        data.add(
            split, _picture(task["data"], folders), folders, file, objects, sizes.pop() if len(sizes) == 1 else None
        )


def _annotations(task: dict[str, Any]) -> list[dict[str, Any]] | None:
    found = task.get("annotations", task.get("completions"))  # the latter in old versions
    return found if isinstance(found, list) else None


def _regions(result: list[dict[str, Any]], data: ForeignData) -> list[dict[str, Any]]:
    """The shapes, each with its labels: those of its own, or those of another entry with its id."""
    named: dict[Any, list[Any]] = {}
    for entry in result:
        value = entry.get("value") or {}
        labels = next((value[key] for key in value if key.endswith("labels") and value[key]), None)
        if labels is not None and (entry.get("id") not in named or entry.get("type") == "labels"):
            named[entry.get("id")] = labels
    shapes = []
    for entry in result:
        kind = str(entry.get("type")).removesuffix("labels")
        if not kind:  # `labels` alone, which belong to a shape of the same id
            continue
        if data.has_box(kind, ("rectangle", "polygon"), SHAPES):
            labels = next((v for key, v in entry["value"].items() if key.endswith("labels") and v), None)
            shapes.append({**entry, "kind": kind, "names": labels or named.get(entry.get("id")) or [None]})
    return shapes


def _objects(region: dict[str, Any], index: int, data: ForeignData) -> Iterator[RawObject]:
    problem = None
    if region.get("image_rotation"):
        problem = "was drawn on a picture that Label Studio showed turned; annotate the picture as it is"
    data.notes["region of several classes read as an object of each"] += len(region["names"]) > 1
    mask = [_polygon(region)] if region["kind"] == "polygon" else ()
    for name in region["names"]:
        yield data.object(f"region {index}", name, _box(region), problem=problem, mask=mask)


def _polygon(region: dict[str, Any]) -> np.ndarray | None:
    width, height = number(region.get("original_width")), number(region.get("original_height"))
    return polygon_of(region["value"].get("points"), (width / 100, height / 100)) if width and height else None


def _box(region: dict[str, Any]) -> Box | None:
    """xyxy in px. A rectangle is turned clockwise around its upper left corner, in px and not in percent."""
    value, kind = region["value"], region["kind"]
    width, height = number(region.get("original_width")), number(region.get("original_height"))
    if not width or not height:
        return None
    sx, sy = width / 100, height / 100
    if kind == "polygon":
        box = around_points(value.get("points"))
        return None if box is None else (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)
    keys = ("x", "y", "width", "height") if kind == "rectangle" else ("x", "y", "radiusX", "radiusY")
    values = [number(value.get(key)) for key in keys]
    if None in values:
        return None
    x, y, w, h = ((part or 0.0) * scale for part, scale in zip(values, (sx, sy, sx, sy), strict=True))
    angle = value.get("rotation") or 0.0
    return turned((x, y, x + w, y + h), angle, (x, y)) if kind == "rectangle" else ellipse(x, y, w, h, angle)


def _picture(values: dict[str, Any], folders: list[Path]) -> str:
    """The name of the picture in a task: a path, a URL, or `/data/local-files/?d=PATH`."""
    texts = [text for text in values.values() if isinstance(text, str)]
    text = str(values.get("image") or values.get("img") or (texts[0] if texts else ""))
    address = urlsplit(text)
    name = (parse_qs(address.query).get("d") or [unquote(address.path) if address.scheme else text])[0]
    base = name.rpartition("/")[2]
    original = _UPLOADED.fullmatch(base)
    if original and find(name, folders)[0] is None and find(original[1], folders)[0]:
        return original[1]
    return name

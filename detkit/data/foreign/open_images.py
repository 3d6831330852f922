"""Open Images' csv: a row a box, as shares of the picture; another csv has the names of the classes."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from detkit.data.check_cache import picture_sizes
from detkit.data.checks import DataError, RawObject
from detkit.data.foreign.collect import ForeignData, around
from detkit.data.pictures import IMAGE_SUFFIXES
from detkit.structures import Size

COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
FLAGS = ("IsOccluded", "IsTruncated", "IsDepiction", "IsInside")


def fits(content: Any) -> bool:
    """`content` is the first row of a csv."""
    return isinstance(content, tuple) and set(COLUMNS) <= set(content)


def read(_: tuple[str, ...], file: Path, split: str, data: ForeignData) -> None:
    """Raises DataError if no picture of the file is here. A group of objects is ignored, as a crowd of COCO."""
    pictures = _pictures(file, split)
    rows: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines):
            rows[row["ImageID"] or ""].append(row)
    here = {image_id: pictures[image_id] for image_id in rows if image_id in pictures}
    if not here:
        raise DataError(
            f"{file}: none of its {len(rows)} pictures is here; expected such as {split}/{next(iter(rows), 'ID')}.jpg"
        )
    data.lost["picture missing here"] += len(rows) - len(here)
    names = _class_names(file)
    used = {row["LabelName"] for image_id in here for row in rows[image_id]}
    data.names += [name for label, name in names.items() if label in used and name not in data.names]
    sizes = picture_sizes(list(map(str, here.values())), decode=False, name=file.name)
    for (image_id, path), size in zip(here.items(), sizes, strict=True):
        objects = [_object(row, index, size, names, data) for index, row in enumerate(rows[image_id], start=1)]
        data.add(split, path.name, [path.parent], file, objects)


def _object(row: dict[str, str], index: int, size: Size | str, names: dict[str, str], data: ForeignData) -> RawObject:
    """A picture whose size is not known is reported by the check."""
    data.lost["object with a flag such as IsOccluded"] += any(row.get(flag) == "1" for flag in FLAGS)
    height, width = (1, 1) if isinstance(size, str) else size
    shares = around((row["XMin"], row["XMax"]), (row["YMin"], row["YMax"]))
    box = None if shares is None else (shares[0] * width, shares[1] * height, shares[2] * width, shares[3] * height)
    name = names.get(row["LabelName"], row["LabelName"])
    return data.object(f"row {index}", name, box, ignore=row.get("IsGroupOf") == "1")


def _pictures(file: Path, split: str) -> dict[str, Path]:
    """The pictures by their id, in the folders in which downloaders put them."""
    words = {"val": ("validation", "val")}.get(split, (split,))
    near = [file.parent / name for name in (*words, "images", "data", *(f"images/{word}" for word in words))]
    folders = [*near, file.parent.parent / "data", *(file.parent.parent / word for word in words), file.parent]
    found: dict[str, Path] = {}
    for folder in filter(Path.is_dir, folders):
        for name in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                found.setdefault(stem, folder / name)
    return found


def _class_names(file: Path) -> dict[str, str]:
    """The name of each label such as `/m/0199g`; a label without one is called by itself."""
    above = file.parent.parent
    for folder in (file.parent, above, above / "metadata", file.parent / "metadata"):
        for path in sorted(folder.glob("*class*.csv")):
            with path.open(encoding="utf-8-sig", newline="") as lines:
                rows = [row for row in csv.reader(lines) if len(row) == 2 and row[0].startswith("/")]
            if rows:
                return {label: name.strip() for label, name in rows}
    return {}

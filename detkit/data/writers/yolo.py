"""The layout of darknet's descendants: data.yaml, `images/train/a.jpg` with `labels/train/a.txt`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from detkit.data.writers.pictures import Picture
from detkit.files import write_text
from detkit.formats import yolo_lines
from detkit.structures import Categories

ONE_FOLDER = False
IGNORED = "object marked as ignored (difficult or a crowd), which YOLO cannot do"
REPEATED = "object repeated, which YOLO reads once"


def write(folder: Path, splits: Mapping[str, Sequence[Picture]], categories: Categories, lost: Counter[str]) -> None:
    """A picture without objects gets an empty label file. Ignored objects are left out."""
    for split, pictures in splits.items():
        for picture in pictures:
            path = folder / "labels" / split / f"{picture.name.rpartition('.')[0]}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in _lines(picture, lost)), encoding="utf-8")
    content = {
        **{split: picture_path(split, "").rstrip("/") for split in splits},
        "nc": len(categories),
        "names": list(categories.names),
    }
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def picture_path(split: str, name: str) -> str:
    return f"images/{split}/{name}"


def settings(folder: Path, splits: Sequence[str], _: Categories) -> dict[str, Any]:
    """The section `data` of a configuration."""
    train = "train" if "train" in splits else splits[0]
    val = next((name for name in ("val", "test") if name in splits and name != train), None)
    return {"name": "yolo", "root": str(folder), "train": train, "val": val}


def _lines(picture: Picture, lost: Counter[str]) -> list[str]:
    objects = picture.truth.objects
    lost[IGNORED] += int(objects.ignore.sum())
    lines = yolo_lines(objects.take(~objects.ignore), picture.truth.size)
    once = list(dict.fromkeys(lines))
    lost[REPEATED] += len(lines) - len(once)
    return once

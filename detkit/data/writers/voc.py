"""PASCAL VOC's layout: `VOC2007` with JPEGImages, Annotations and ImageSets/Main, the year being only a name.

The order of the classes is in `labelmap.txt`, in the form in which CVAT writes it beside its own export.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detkit.data.writers.pictures import Picture
from detkit.files import write_text
from detkit.formats import voc_xml
from detkit.structures import Categories

ONE_FOLDER = True
DEVKIT = "VOC2007"
LABELMAP = "labelmap.txt"
TOO_SMALL = "object of at most 1 px, which VOC cannot hold"


def write(folder: Path, splits: Mapping[str, Sequence[Picture]], categories: Categories, lost: Counter[str]) -> None:
    """Ignored objects are difficult. A corner that is no whole number is written with its decimals."""
    devkit = folder / DEVKIT
    for split, pictures in splits.items():
        lines = [picture.name.rpartition(".")[0] for picture in pictures]
        (devkit / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        write_text(devkit / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{line}\n" for line in lines))
    for name, picture in {picture.name: picture for each in splits.values() for picture in each}.items():
        path = devkit / "Annotations" / f"{name.rpartition('.')[0]}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        base = picture.name.rpartition("/")[2]
        text, too_small = voc_xml(base, picture.truth.size, picture.truth.objects, categories.names)
        lost[TOO_SMALL] += too_small
        path.write_text(text, encoding="utf-8")
    header = "# label:color_rgb:parts:actions\n"
    write_text(folder / LABELMAP, header + "".join(f"{name}:::\n" for name in categories.names))


def read_labelmap(folder: Path) -> list[str]:
    """The classes in their order; empty if there is no such file."""
    try:
        lines = (folder / LABELMAP).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    names = [line.rsplit(":", 3)[0].strip() for line in lines if line.count(":") >= 3 and line[0] != "#"]
    return [name for name in names if name and name != "background"]


def picture_path(_: str, name: str) -> str:
    return f"{DEVKIT}/JPEGImages/{name}"


def settings(folder: Path, splits: Sequence[str], categories: Categories) -> dict[str, Any]:
    """The section `data` of a configuration."""
    train = "train" if "train" in splits else splits[0]
    val = next((name for name in ("val", "test") if name in splits and name != train), None)
    year = DEVKIT.removeprefix("VOC")
    return {
        "name": "voc",
        "root": str(folder),
        "train": [f"{year}_{train}"],
        "val": [f"{year}_{val}"] if val else [],
        "classes": list(categories.names),
    }

"""Formats of other tools, which `detkit convert` reads. Adding one: a file with `fits` and `read`, a line below."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from detkit.data.checks import DataError
from detkit.data.foreign import createml, cvat, label_studio, labelme, labelme_xml, open_images, supervisely, via
from detkit.data.foreign.collect import ForeignData, split_of
from detkit.data.foreign.files import annotation_files, load
from detkit.data.pictures import IMAGE_SUFFIXES

Fits = Callable[[Any], bool]
Read = Callable[[Any, Path, str, ForeignData], None]

MAX_FILES = 20  # annotation files of a folder that are looked at to see what they are
MAX_MB = 100  # larger ones are not opened for that
FORMATS: dict[str, tuple[Fits, Read]] = {
    "labelme": (labelme.fits, labelme.read),
    "labelme_xml": (labelme_xml.fits, labelme_xml.read),
    "cvat": (cvat.fits, cvat.read),
    "label_studio": (label_studio.fits, label_studio.read),
    "supervisely": (supervisely.fits, supervisely.read),
    "via": (via.fits, via.read),
    "createml": (createml.fits, createml.read),
    "open_images": (open_images.fits, open_images.read),
}


def foreign_format(path: Path) -> str | None:
    """Which of `FORMATS` a file has, or the files of a folder have; None if it is none of them."""
    for file in islice(annotation_files(path), MAX_FILES):
        try:
            content = load(file) if file.stat().st_size < MAX_MB * 2**20 else None
        except (DataError, OSError):
            continue
        if found := next((name for name, (fits, _) in FORMATS.items() if fits(content)), None):
            return found
    return None


def read_foreign(path: Path, name: str) -> tuple[ForeignData, tuple[str, ...]]:
    """The images of every split of a file or folder of the format `name`, and the names of the classes.

    Files of other formats among them are counted. Raises DataError if there is none of this one, or if one is not as
    its tool writes it.
    """
    fits, read = FORMATS[name]
    data = ForeignData()
    root = path if path.is_dir() else path.parent
    for file in annotation_files(path):
        if name == "supervisely" and file.parent.name == "ann":  # these are read with their meta.json
            continue
        content = load(file)
        if not fits(content):
            data.lost["file of another format"] += file.suffix != ".csv"  # one of Open Images' has names of classes
            continue
        try:
            # LabelMe's files are called like their pictures, which says nothing about a split.
            stem = "" if name.startswith("labelme") else file.stem
            read(content, file, split_of(file.parent.relative_to(root), stem), data)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
            raise DataError(f"{file}: is not as {name} writes it: {error!r}") from error
    if not any(data.images.values()):
        raise DataError(f"{path}: no picture with annotations in the format {name}")
    data.lost["picture that no annotation names"] += _unnamed(data)
    return data, data.finish()


def _unnamed(data: ForeignData) -> int:
    """How many pictures lie in the folders of the others without an annotation."""
    paths = {image.path for images in data.images.values() for image in images}
    folders = {folder for path in paths if os.path.isdir(folder := os.path.dirname(path))}
    there = {os.path.join(folder, name) for folder in folders for name in os.listdir(folder)}
    return sum(os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES for path in there - paths)

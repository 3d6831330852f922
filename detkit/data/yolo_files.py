"""Finds the pictures of a split in the layout of darknet's descendants, and the label file of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.data.checks import DataError
from detkit.data.pictures import IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """The pictures of one entry of the YAML file.

    pictures  in the order of the list, or sorted
    labels    folders whose every label file must belong to one of the pictures; empty for a list, which may leave
              pictures out
    """

    pictures: Sequence[Path]
    labels: frozenset[Path] = frozenset()


def split_entries(content: dict[str, Any], key: str, split: str, path: Path) -> list[str]:
    """The folders and lists of a split, at least one."""
    if key not in content:
        known = [other for other in ("train", "val", "test") if content.get(other)]
        raise DataError(f"data.{split}: {path} has no key {key!r}; splits there: {', '.join(known) or 'none'}")
    entries = content[key] if isinstance(content[key], list) else [content[key]]
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise DataError(
            f"{path}: {key}: expected a folder of pictures, a .txt list, or several, found {content[key]!r}"
        )
    return entries


def find_pictures(entry: str, root: Path, where: str) -> PictureFolder:
    """The pictures of `entry`, a folder or a list; `where` begins its messages."""
    path, beside = root / entry, root / entry.removeprefix("../")
    if not path.exists() and beside.exists():  # Roboflow writes ../train/images for a folder beside the file
        path = beside
    if path.is_file():
        return PictureFolder(_read_list(path, root))
    if not path.is_dir():
        raise DataError(f"{where}: {entry}: the folder or list {path} does not exist; it is relative to {root}")
    try:
        pictures = sorted(p for p in _files(path) if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
    except OSError as error:
        raise DataError(f"{where}: {entry}: cannot be searched: {error}; correct its permissions or links") from error
    if not pictures:
        raise DataError(f"{where}: {entry}: no picture in {path}; known: {', '.join(IMAGE_SUFFIXES)}")
    folders = {path, *(picture.parent for picture in pictures)}
    return PictureFolder(pictures, frozenset(filter(None, map(_labels_folder, folders))))


def _files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """All files of a folder, linked folders included. A link back to one of the folders `above` is not followed."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, above | {real})
        else:
            yield path


def _read_list(path: Path, root: Path) -> list[Path]:
    """The pictures of a list, a path a line: absolute, or relative to the folder of the list, or else to `root`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: expected UTF-8 text, the path of a picture a line: {error}") from error
    names = [line.strip().replace("\\", "/") for line in text.splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} is empty: expected the path of a picture a line")
    candidates = [(path.parent / name, root / name) for name in names]
    return [other if other.is_file() and not beside.is_file() else beside for beside, other in candidates]


def _labels_folder(folder: Path) -> Path | None:
    """`folder` with its last part `images` as `labels`; None if it has none."""
    parts = list(folder.parts)
    if "images" not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :])


def label_path(picture: Path) -> Path:
    return (_labels_folder(picture.parent) or picture.parent) / f"{picture.stem}.txt"


def relative_name(path: Path, root: Path) -> str:
    """The path in messages and image ids: relative to `root` if it lies below it."""
    normalised = Path(os.path.normpath(path))
    base = os.path.normpath(root)
    return normalised.relative_to(base).as_posix() if normalised.is_relative_to(base) else normalised.as_posix()

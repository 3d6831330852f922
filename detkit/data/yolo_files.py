"""Finds the pictures of a split in the layout of darknet's descendants, and the label file of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detkit.data.checks import DataError
from detkit.data.picture_names import find, locate
from detkit.data.pictures import IMAGE_SUFFIXES
from detkit.data.text_files import decode_text

PICTURE_FOLDERS = ("images", "JPEGImages")  # darknet looks for the label files of both in `labels`
LABEL_SUFFIXES = (".txt", ".TXT")


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """The pictures of one entry of a split.

    pictures   in the order of the list, or sorted
    labels     folders whose every label file must belong to one of the pictures; empty for a list, which may leave
               pictures out
    respelled  pictures, or the folder itself, whose name is spelled differently from the one on this machine
    """

    pictures: Sequence[Path]
    labels: frozenset[Path] = frozenset()
    respelled: int = 0


def find_pictures(entry: str, root: Path, others: Sequence[str], where: str) -> PictureFolder:
    """The pictures of `entry`, a folder or a list; `where` begins its messages.

    others  entries of other splits: a spelling that leads to one of them too does not count
    """
    path, as_written = find(entry, [root], folder=True)
    if not as_written and path in [find(other, [root], folder=True)[0] for other in others]:
        path = None
    if path is None:
        raise DataError(f"{where}: {entry}: the folder or list {root / entry} does not exist; it is relative to {root}")
    if path.is_file():
        pictures, respelled = _read_list(path, root)
        return PictureFolder(pictures, respelled=respelled)
    try:
        pictures = sorted(p for p in _files(path) if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
    except OSError as error:
        raise DataError(f"{where}: {entry}: cannot be searched: {error}; correct its permissions or links") from error
    if not pictures:
        raise DataError(f"{where}: {entry}: no picture in {path}; known: {', '.join(IMAGE_SUFFIXES)}")
    folders = {path, *(picture.parent for picture in pictures)}
    return PictureFolder(pictures, frozenset(filter(None, map(_labels_folder, folders))), int(not as_written))


def label_path(picture: Path) -> Path:
    """Its label file, or where that is expected: in `labels` beside the last folder called `images`, else beside it."""
    folders = [folder for folder in (_labels_folder(picture.parent), picture.parent) if folder is not None]
    candidates = [folder / f"{picture.stem}{suffix}" for folder in folders for suffix in LABEL_SUFFIXES]
    return next((path for path in candidates if os.path.exists(path)), candidates[0])


def relative_name(path: Path, root: Path) -> str:
    """The path in messages and image ids: relative to `root` if it lies below it."""
    normalised = Path(os.path.normpath(path))
    base = os.path.normpath(root)
    return normalised.relative_to(base).as_posix() if normalised.is_relative_to(base) else normalised.as_posix()


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


def _read_list(path: Path, root: Path) -> tuple[list[Path], int]:
    """The pictures of a list, and how many of them are spelled differently.

    A path a line: absolute, or relative to the folder of the list, or else to `root`. A name that is not UTF-8 stays
    as Python decodes file names. `#` begins a comment, unless a picture is called so.
    """
    try:
        text = decode_text(path.read_bytes(), errors="surrogateescape")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: expected UTF-8 text, the path of a picture a line: {error}") from error
    if "\0" in text:
        raise DataError(f"{path}: expected UTF-8 text, the path of a picture a line; this file is none")
    folders = [path.parent, root]
    lines = [line.strip() for line in text.splitlines()]
    names = [
        line for line in lines if line and (line[0] != "#" or any(os.path.isfile(base / line) for base in folders))
    ]
    if not names:
        raise DataError(f"{path} is empty: expected the path of a picture a line")
    return locate(names, folders, str(path))


def _labels_folder(folder: Path) -> Path | None:
    """`folder` with its last part `images` as `labels`; None if it has none."""
    parts = list(folder.parts)
    places = [place for place, part in enumerate(parts) if part in PICTURE_FOLDERS]
    return Path(*parts[: places[-1]], "labels", *parts[places[-1] + 1 :]) if places else None

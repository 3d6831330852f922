"""Finds the pictures that an annotation file names, also where it was written on another machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from detkit.data.checks import DataError

RESPELLED = "path found under another spelling"  # the note of those that a summary counts


def locate(names: Sequence[str], folders: Sequence[Path], where: str) -> tuple[list[Path], int]:
    """The file of each name, and how many of the names are spelled differently from their file (see `find`).

    A name without a file is where it should be, in the first of `folders`. Raises DataError, beginning with `where`, if
    two names lead to one file, as those of two folders do that were unpacked into one.
    """
    paths: dict[str, Path] = {}
    name_of: dict[Path, str] = {}
    respelled = set()
    for name in dict.fromkeys(names):
        path, as_written = find(name, folders)
        path = paths[name] = path or folders[0] / name
        other = name_of.setdefault(path, name)
        respelled |= set() if as_written else {name}
        if other != name and respelled & {name, other}:
            raise DataError(
                f"{where}: {other} and {name} both lead to {path}; put the pictures into the folders that are named"
            )
    return [paths[name] for name in names], sum(name in respelled for name in names)


def find(name: str, folders: Sequence[Path], *, folder: bool = False) -> tuple[Path | None, bool]:
    """The file, or the `folder`, that `name` means below one of `folders`, and whether it is spelled just so.

    Where there is no such file, the name is tried as it may be meant: with `/` for the `\\` of Windows, without the
    host of a URL and its `%20`, and without leading folders that are not here, as few of them as possible.
    (None, True): nothing was found.
    """
    exists = os.path.exists if folder else os.path.isfile
    for base in folders:
        if exists(base / name):
            return base / name, True
    for base in folders:
        for path in _other_spellings(name, base):
            if exists(path):
                return path, False
    return None, True


def _other_spellings(name: str, base: Path) -> Iterator[Path]:
    plain = name.replace("\\", "/")
    plain = urlsplit(plain).path if "://" in plain else plain
    for text in dict.fromkeys((plain, unquote(plain, errors="surrogateescape"))):
        parts = [part for part in text.split("/") if part not in ("", ".")]
        while parts:
            yield base.joinpath(*parts)
            if parts[0] != ".." and os.path.isdir(base / parts[0]):
                break  # the folder is here, so the name is of this place, and another picture would be a wrong one
            parts = parts[1:]

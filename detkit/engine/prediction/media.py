"""What there is to detect on: files, folders, globs, lists, cameras and streams become media with a name each.

Nothing is passed over in silence: what is in a folder is a medium, or it is counted in a `LeftOut`. Only hidden files
and those of the system go without a word.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from detkit.config import UserError
from detkit.data.pictures import IMAGE_SUFFIXES
from detkit.data.stream_urls import is_picture_url, is_url, without_password
from detkit.engine.prediction.folders import VIDEO_SUFFIXES, LeftOut, Search, is_entered, select, walk
from detkit.engine.prediction.frames import Medium
from detkit.engine.prediction.naming import drawing_names, stream_name

__all__ = ["LeftOut", "find_media", "is_picture_url", "is_url", "without_password"]


def find_media(sources: Sequence[str], output: Path | None = None) -> tuple[list[Medium], list[LeftOut]]:
    """Media of files, folders (all the way down), globs, lists (.txt), `camera:N` and URLs, each of them once.

    Left out of a folder are `output`, the folder of this run, and folders below it that an earlier run has written;
    a folder that the user names is read whatever it holds. Raises UserError if a source is missing, or if there is no
    medium at all.
    """
    search = Search(None if output is None else output.resolve())
    for source in sources:
        _add(search, source, Path())
    media = [Medium(str(path), name, _kind(path)) for path, name in drawing_names(search.files, VIDEO_SUFFIXES)]
    taken = {medium.name for medium in media}
    for url in dict.fromkeys(search.streams):
        media.append(Medium(url, stream_name(url, taken, IMAGE_SUFFIXES), "stream"))
        taken.add(media[-1].name)
    if not media:
        reasons = "".join(f"; {left.reason}" for left in search.left_out)
        known = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        raise UserError(f"{', '.join(sources)}: no picture or video here{reasons}; known: {known}")
    return media, search.left_out


def _kind(path: Path) -> Literal["picture", "video"]:
    return "video" if path.suffix.lower() in VIDEO_SUFFIXES else "picture"


def _add(search: Search, source: str, folder: Path) -> None:
    """Adds what `source` stands for; a path is relative to `folder` if it is there, else to the current folder."""
    path = folder / source if os.path.lexists(folder / source) else Path(source)
    if is_url(source):
        _check_url(source)
        search.streams.append(source)
    elif path.is_dir():
        search.files += [(path, file) for file in select(search, walk(search, path))]
    elif path.suffix.lower() == ".txt" and path.exists():
        _add_list(search, path)
    elif os.path.lexists(path):
        search.files += [(path.parent, file) for file in select(search, [path], hidden=True)]
    elif re.fullmatch(r"(camera:)?\d+", source):
        search.streams.append(f"camera:{int(source.rpartition(':')[2])}")
    elif glob.has_magic(source):
        _add_glob(search, source, folder)
    else:
        raise UserError(f"{source}: no such file or folder")
    search.end_source(source)


def _check_url(source: str) -> None:
    try:
        urlsplit(source)
    except ValueError as error:
        raise UserError(f"{source}: this is no URL: {error}") from error


def _add_list(search: Search, path: Path) -> None:
    """Adds what each line names; lines that begin with # are comments."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a list of files in UTF-8, one a line; found: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.lower().endswith(".txt"):
            raise UserError(f"{path}, line {number}: a list cannot name another one, found {line}")
        if line and not line.startswith("#"):
            try:
                _add(search, line, path.parent)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}; a .txt is read as a list of files") from error


def _add_glob(search: Search, pattern: str, folder: Path) -> None:
    """Adds what matches; names are relative to the folder that stands before the first wildcard."""
    for start in (folder / pattern, Path(pattern)):
        if matches := [Path(match) for match in sorted(glob.glob(str(start), recursive=True))]:
            break
    else:
        raise UserError(f"{pattern}: no file matches")
    wildcard = next(index for index, part in enumerate(start.parts) if glob.has_magic(part))
    base = Path(*start.parts[:wildcard])
    entered = cache(partial(is_entered, search))
    for match in matches:
        if not all(entered(folder) for folder in match.parents if base in folder.parents):
            continue
        if not match.is_dir():
            search.files += [(base, file) for file in select(search, [match], hidden=True)]
        elif "**" not in start.parts and entered(match):  # ** also matches all that is in the folder
            search.files += [(base, file) for file in select(search, walk(search, match))]

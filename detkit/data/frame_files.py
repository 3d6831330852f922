"""The pictures of the frames of a video.

Legend: F frames of a video, counted from 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detkit.data.checks import DataError
from detkit.data.pictures import IMAGE_SUFFIXES


@dataclass(frozen=True, eq=False)
class FrameFiles:
    """The files of the frames of one video, in one array: AVA has six million.

    folder  in which they are
    names   bytes `[F]`, of each file in the folder, as the system has it; empty for a frame without a picture
    """

    folder: str
    names: np.ndarray

    @classmethod
    def of(cls, paths: Sequence[str | None]) -> FrameFiles:
        """None is a frame without a picture."""
        folders = {os.path.dirname(path) for path in paths if path is not None}
        folder = folders.pop() if len(folders) == 1 else ""
        names = [os.fsencode(path[len(folder) :].lstrip("/") if folder else path) if path else b"" for path in paths]
        return cls(folder, np.array(names, np.bytes_))

    def __len__(self) -> int:
        return len(self.names)

    def path(self, number: int) -> str:
        return os.path.join(self.folder, os.fsdecode(bytes(self.names[number])))

    def numbers(self) -> np.ndarray:
        """int64: those of the frames that have a picture."""
        return np.flatnonzero(self.names != b"")

    def without(self, numbers: Collection[int]) -> FrameFiles:
        """These frames have no picture."""
        names = self.names.copy()
        names[list(numbers)] = b""
        return replace(self, names=names)


def frames_in(folder: Path, where: str) -> FrameFiles:
    """All pictures in a folder, in the order of their names, numbers in them by their value."""
    names = _pictures(folder, where)
    if not names:
        raise DataError(f"{where}: the folder of its frames, {folder}, has no picture")
    return FrameFiles(str(folder), np.array([os.fsencode(name) for name in sorted(names, key=_natural)], np.bytes_))


def numbered_frames(folder: Path, annotated: Sequence[int], expected: str, where: str) -> FrameFiles:
    """The pictures in a folder by the number at the end of their names, of which the first is 1.

    The folder may lack some, or may itself be missing: of those that are `annotated` (counted from 0) the check of the
    data set then tells, by the name `expected`, in which the number stands for `%05d`.
    """
    names: dict[int, str] = {}
    for name in _pictures(folder, where) if folder.exists() else ():
        digits = re.search(r"[0-9]+$", os.path.splitext(name)[0])
        if digits is None:
            raise DataError(f"{where}: {folder / name}: expected a name that ends in the number of the frame")
        if int(digits[0]) in names:
            raise DataError(f"{where}: {folder}: {name} and {names[int(digits[0])]} are the same frame; remove one")
        names[int(digits[0])] = name
    names.pop(0, None)
    for number in annotated:
        names.setdefault(number + 1, expected % (number + 1))
    encoded = {number - 1: os.fsencode(name) for number, name in names.items()}
    array = np.zeros(max(encoded) + 1, f"S{max(map(len, encoded.values()))}")
    array[list(encoded)] = list(encoded.values())
    return FrameFiles(str(folder), array)


def _pictures(folder: Path, where: str) -> list[str]:
    """The names of the pictures in a folder, without hidden files."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{where}: the folder of its frames, {folder}, cannot be read: {reason}") from error
    return [name for name in names if name[0] != "." and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sorts frame2 before frame10."""
    parts = re.split(r"([0-9]+)", name)  # text and digits by turns
    return [int(part) if position % 2 else part for position, part in enumerate(parts)], name

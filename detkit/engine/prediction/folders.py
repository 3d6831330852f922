"""What lies in folders: pictures and videos to detect on, and a count of all that is neither."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detkit.data.pictures import IMAGE_SUFFIXES

VIDEO_SUFFIXES: tuple[str, ...] = (
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".ts", ".mts", ".m2ts", ".3gp", ".3g2", ".ogv", ".asf", ".vob", ".mxf"),
)
# Pictures that nothing here can decode.
_UNREADABLE = (
    *(".svg", ".psd", ".xcf", ".ai", ".eps", ".jxl", ".ico", ".icns", ".tga", ".exr", ".hdr", ".pcx", ".dds"),
    *(".fits", ".dcm", ".cr2", ".cr3", ".nef", ".dng", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
_HEIF = (".heic", ".heif", ".hif")  # in IMAGE_SUFFIXES with pillow-heif
_RECORDS = ("detections.json", "detections.jsonl")  # the folder that has one is the output of a prediction
_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class LeftOut:
    """Something of a source that is not read.

    source  the source as the user gave it, or the file
    reason  one line
    """

    source: str
    reason: str


@dataclass
class Search:
    """What is there so far.

    output    the folder of this run
    files     (the folder that its name is relative to, file)
    reasons   why something of the present source is left out -> what
    others    files of the present source that are neither pictures nor videos, by suffix
    """

    output: Path | None
    files: list[tuple[Path, Path]] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)

    def leave_out(self, what: str | Path, reason: str) -> None:
        self.reasons.setdefault(reason, []).append(str(what))

    def end_source(self, source: str) -> None:
        """Counts what was left out of this source, by reason."""
        for reason, what in self.reasons.items():
            self.left_out.append(LeftOut(source, f"{reason}: {_counted(what)}"))
        if self.others:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.others.items()))
            self.left_out.append(LeftOut(source, f"other files: {kinds}"))
        self.reasons.clear()
        self.others.clear()


def _counted(what: Sequence[str]) -> str:
    return what[0] if len(what) == 1 else f"{len(what)}, the first is {what[0]}"


def walk(search: Search, folder: Path) -> Iterator[Path]:
    """Files of the folder and of those below it, in the order of their names."""
    entered: set[str] = set()  # links may lead back to where one is

    def refused(error: OSError) -> None:
        search.leave_out(error.filename, f"folders that cannot be read ({error.strerror})")

    if search.output == folder.resolve() and _has_records(folder):  # of the run before, with the same settings
        search.leave_out(folder, "the output of this run")
        return
    for name, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        here = Path(name)
        if (real := os.path.realpath(here)) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [below for below in sorted(folders) if is_entered(search, here / below)]
        yield from (here / file for file in sorted(files))


def is_entered(search: Search, folder: Path) -> bool:
    """Whether a folder below the given one is searched; counts one that is not."""
    if folder.name.startswith("."):
        return False
    if folder.name == "__MACOSX":
        search.leave_out(folder, "folders that macOS adds to an archive")
    elif search.output is not None and folder.resolve() == search.output:
        search.leave_out(folder, "the output of this run")
    elif _has_records(folder):
        search.leave_out(folder, "output of an earlier prediction, which is read if you name its folder")
    else:
        return True
    return False


def _has_records(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _RECORDS)


def select(search: Search, files: Iterable[Path], hidden: bool = False) -> Iterator[Path]:
    """The pictures and videos among them; counts the others. `hidden`: also those that are hidden."""
    for file in files:
        suffix = file.suffix.lower()
        if file.name.startswith("._") and suffix and not hidden:
            search.leave_out(file, "files named ._*, in which macOS stores attributes")
        elif file.name.lower() in _SYSTEM_FILES or (file.name.startswith(".") and not hidden):
            continue
        elif suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
            yield file
        elif suffix in _HEIF:
            search.leave_out(file, f"{suffix} pictures, which are read after `pip install pillow-heif`")
        elif suffix in _UNREADABLE:
            search.leave_out(file, f"{suffix} pictures, which are not read; convert them to PNG or JPEG")
        else:
            search.others[suffix or "without a suffix"] += 1

"""The pictures of a data set that is written: what each is called, and how it gets there."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from detkit.data.dataset import ImageDataset
from detkit.data.pictures import IMAGE_SUFFIXES
from detkit.files import writing
from detkit.structures import EncodedMasks, GroundTruth

# A folder of such a name in the midst of a path would decide where its label file is looked for.
CONTAINERS = ("images", "jpegimages", "labels", "annotations", "imagesets")
_NOT_IN_NAMES = re.compile("[\0-\x1f\x7f\ud800-\udfff]")  # neither XML nor UTF-8 can have these

LISTED_AGAIN = "repetition of a picture in its list"
RENAMED = "picture renamed"


@dataclass(frozen=True)
class Picture:
    """A picture to write.

    source  the file
    name    what it is called in its new folder, with `/` between folders; no other has this name with another suffix
    truth   its objects
    """

    source: str
    name: str
    truth: GroundTruth


def name_pictures(
    splits: Mapping[str, ImageDataset], *, one_folder: bool, lost: Counter[str]
) -> dict[str, list[Picture]]:
    """Every picture of each split once, with the path below the folder that all of them have in common as its name.

    one_folder  whether the pictures of all splits come into one folder, so that their names must differ
    """
    contents: dict[tuple[str, str], object] = {}  # (split, name without suffix) -> the picture that has it
    names: dict[tuple[str, object], str] = {}
    result: dict[str, list[Picture]] = {}
    for split, dataset in splits.items():
        sources = [os.path.abspath(dataset.path(index)) for index in range(len(dataset))]
        base, folder = _common_folder(sources), "" if one_folder else split
        pictures: dict[object, Picture] = {}
        for index, source in enumerate(sources):
            truth = dataset.ground_truth(index)
            content = (source, *map(_bytes_of, truth.objects.columns().values()))
            if content in pictures:
                lost[LISTED_AGAIN] += 1
                continue
            if (folder, content) not in names:  # a picture of two splits is one file
                plain = _plain_name(source, base)
                name = names[folder, content] = _free_name(plain, folder, content, contents)
                lost[RENAMED] += os.path.basename(name) != os.path.basename(source)
            pictures[content] = Picture(source, names[folder, content], truth)
        result[split] = list(pictures.values())
    return result


def _bytes_of(column: np.ndarray | EncodedMasks) -> bytes:
    parts = (column.kinds, column.starts, column.data) if isinstance(column, EncodedMasks) else (column,)
    return b"".join(part.tobytes() for part in parts)


def place(pictures: Iterable[tuple[str, Path]], *, copy: bool) -> Counter[str]:
    """Puts each file (source, target) in its place, as a further name of the same file unless `copy`.

    Where the file system cannot do that, as across two of them, the file is copied. Returns how many of each.
    """
    counts: Counter[str] = Counter()
    for source, target in dict.fromkeys(pictures):
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            counts["picture linked" if not copy and _link(source, target) else "picture copied"] += 1
            if not target.exists():
                shutil.copyfile(source, target)
    return counts


def _link(source: str, target: Path) -> bool:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        return False
    return True


def _common_folder(paths: Sequence[str]) -> str:
    try:
        return os.path.commonpath({os.path.dirname(path) for path in paths})
    except ValueError:  # no paths, or several drives
        return ""


def _plain_name(source: str, base: str) -> str:
    """The path below `base`, without what a format or a file system could misread."""
    relative = os.path.relpath(source, base) if base else os.path.basename(source)
    *folders, name = PurePosixPath(Path(relative).as_posix()).parts
    stem, suffix = os.path.splitext(name)
    known = suffix if suffix.lower() in IMAGE_SUFFIXES else f"{suffix}.jpg"  # others would not be looked for
    parents = [part for part in folders if part.lower() not in CONTAINERS]
    return "/".join(_NOT_IN_NAMES.sub("_", part.strip()) for part in (*parents, f"{stem.strip() or 'picture'}{known}"))


def _free_name(name: str, folder: str, content: object, taken: dict[tuple[str, str], object]) -> str:
    """`name`, or it with a number where another picture of the folder is called so, be it with another suffix."""
    stem, suffix = os.path.splitext(name)
    number, free = 1, stem
    while taken.setdefault((folder, free.casefold()), content) != content:
        number += 1
        free = f"{stem}_{number}"
    return free + suffix

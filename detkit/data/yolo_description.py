"""What describes a data set in the layout of darknet's descendants: a YAML file, darknet's obj.data, or names alone."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.config import parse_yaml
from detkit.data.checks import DataError, NoValidation
from detkit.data.keypoint_names import keypoint_categories
from detkit.data.picture_names import find
from detkit.data.text_files import decode_text
from detkit.data.yolo_labels import PointShape
from detkit.structures import KeypointCategories

YAML_SUFFIXES = (".yaml", ".yml")
NAMES_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "train/_darknet.labels")  # the last is Roboflow's
SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}  # and what folders and lists call them
NOTHING: tuple[Any, ...] = ("", "~", "null", "Null", "NULL", None, [])  # values of a YAML file that stand for none


@dataclass(frozen=True)
class YOLODescription:
    """The description of a data set, from whichever file has it.

    path     the file, which messages name
    folder   the one that paths are relative to
    content  the values of a YAML file, or the same ones from elsewhere: texts, and lists and mappings of texts
    names    of the classes, by the number that stands in the label files, in the order of these numbers
    points   `kpt_shape`, the keypoints of a line; None if `content` does not say
    """

    path: Path
    folder: Path
    content: Mapping[str, Any]
    names: Mapping[int, str]
    points: PointShape | None

    def entries(self, key: str | None, split: str) -> list[str]:
        """The folders and lists of a split, at least one. Raises NoValidation if there is no validation split."""
        known = [other for other in SPLITS if self.content.get(other) not in NOTHING]
        listed = f"splits there: {', '.join(known) or 'none'}"
        if split == "val" and (key is None or (key == "val" and key not in known)):
            raise NoValidation(f"data.val: {self.path} has no validation split; {listed}")
        if key is None or key not in self.content:
            raise DataError(f"data.{split}: {self.path} has no key {key!r}; {listed}")
        value = None if self.content[key] in NOTHING else self.content[key]
        entries: list[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) and entry for entry in entries):
            raise DataError(
                f"{self.path}: {key}: expected a folder of pictures, a .txt list, or several, found {value!r}"
            )
        return entries

    def other_entries(self, entries: Sequence[str]) -> list[str]:
        """The folders and lists of the other splits."""
        values = [self.content.get(key) for key in SPLITS]
        texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
        return [text for text in texts if isinstance(text, str) and text and text not in entries]

    def root(self, entries: Sequence[str]) -> tuple[Path, bool]:
        """The folder that `entries` are relative to, and whether it is another one than the file says.

        It is `path` of the file. Where there is no such folder, as in a file from another machine, it is the folder of
        the file if the first of `entries` is found below it, or a folder below it called as the end of `path`.
        """
        given = self.content.get("path")
        path = self.folder if given in NOTHING else self.folder / str(given)
        if os.path.isdir(path):  # which is False for a name that no folder can have
            return path, False
        if find(entries[0], [self.folder], folder=True)[0]:
            return self.folder, True
        below, _ = find(str(given), [self.folder], folder=True)
        if below is None:
            raise DataError(f"{self.path}: path: the folder {path} does not exist; paths are relative to this file")
        return below, True

    def keypoints(self, points: PointShape) -> KeypointCategories:
        """What the points of an object are, as far as the file says. Raises DataError naming what is wrong."""
        pairs = _flip_pairs(self.content.get("flip_idx"), points[0], str(self.path))
        return keypoint_categories(_point_names(self.content.get("kpt_names"), points[0], str(self.path)), pairs)


def read_description(root: Path) -> YOLODescription:
    """The description of the folder `root`, or the one in this file. Raises DataError naming what is missing."""
    path = _description_file(root)
    folder = root if root.is_dir() else root.parent
    if path.suffix.lower() in YAML_SUFFIXES:
        content = parse_yaml(_read(path), str(path), as_text=True)
    elif path.suffix.lower() == ".data":
        content = _darknet_values(_read(path))
    else:
        content = {"names": path.relative_to(folder).as_posix(), **_split_folders(folder)}
    if not isinstance(content, dict):
        found = "a list" if isinstance(content, list) else repr(content)
        raise DataError(f"{path}: expected a mapping with train, val and names, found {found}")
    if "valid" in content:  # darknet's word
        content.setdefault("val", content["valid"])
    return YOLODescription(path, folder, content, _class_names(content, path, folder), _point_shape(content, path))


def _read(path: Path) -> str:
    try:
        return decode_text(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _description_file(root: Path) -> Path:
    """`root` itself, or the first file in it that describes a data set."""
    if root.suffix.lower() in (*YAML_SUFFIXES, ".data") and not root.is_dir():
        folder, candidates = root.parent, [root]
    else:
        folder, candidates = root, [root / name for name in ("data.yaml", "obj.data")]
    if not folder.is_dir():
        raise DataError(f"data.root: the folder {folder} does not exist; see datasets/README.md")
    others = sorted(str(path) for suffix in (*YAML_SUFFIXES, ".data") for path in folder.glob(f"*{suffix}"))
    if not others:
        candidates += [root / name for name in NAMES_FILES]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        hint = f"set data.root to one of {', '.join(others)}" if others else "there is no YAML file"
        raise DataError(f"data.root: {candidates[0]} does not exist; {hint}; see datasets/README.md")
    return path


def _darknet_values(text: str) -> dict[str, Any]:
    """The values of darknet's obj.data, `key = value` a line, under the keys of a YAML file."""
    lines = [line.partition("=") for line in text.splitlines() if line.strip() and line.strip()[0] not in "#;"]
    values = {key.strip(): value.strip() for key, _, value in lines}
    return {"nc" if key == "classes" else key: value for key, value in values.items()}


def _split_folders(folder: Path) -> dict[str, str]:
    """The folders and lists of the splits where no file says so; with none of them all pictures are for training."""
    found = {}
    for split, words in SPLITS.items():
        for word in words:
            for name in (f"images/{word}", f"{word}/images", f"{word}.txt", word):
                if split not in found and (folder / name).exists():
                    found[split] = name
    return found or {"train": next((name for name in ("images", "JPEGImages") if (folder / name).is_dir()), ".")}


def _class_names(content: Mapping[str, Any], path: Path, folder: Path) -> dict[int, str]:
    """`names`: a list, a mapping by the numbers in the label files, or a file with a name a line."""
    names, nc = content.get("names"), content.get("nc")
    if isinstance(names, str) and (file := find(names, [folder])[0]):
        names = _read(file).rstrip().splitlines()
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) and n.strip() for n in names.values()):
        found = content.get("names")
        raise DataError(f"{path}: names: expected the names of the classes, as [cat, dog], found {found!r}")
    numbers = [number for text in names if (number := small_number(text)) is not None]
    if len(set(numbers)) < len(names):
        raise DataError(f"{path}: names: expected the numbers of the classes as keys, found {', '.join(names)}")
    texts = [name.strip() for name in names.values()]
    name, count = Counter(texts).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: names: {count} classes are called {name!r}; each needs a name of its own")
    if nc not in NOTHING and str(nc) not in (str(len(names)), str(max(numbers) + 1)):
        raise DataError(f"{path}: nc: says {nc} classes, but names has {len(names)}; correct it or leave it out")
    return dict(sorted(zip(numbers, texts, strict=True)))


def _point_shape(content: Mapping[str, Any], path: Path) -> PointShape | None:
    """`kpt_shape: [points, 2 or 3]`."""
    shape = content.get("kpt_shape")
    if shape in NOTHING:
        return None
    first, second = shape if isinstance(shape, list) and len(shape) == 2 else (None, None)
    points = small_number(first)
    if points is None or second not in ("2", "3"):
        raise DataError(f"{path}: kpt_shape: expected [points, 2 or 3], found {shape!r}")
    return (points, int(second)) if points else None


def small_number(text: Any) -> int | None:
    """The number of a class or a point that is written with digits alone; None for anything else."""
    return int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,9}", text) else None


def _flip_pairs(flips: Any, points: int, where: str) -> list[tuple[int, int]] | None:
    """The pairs that `flip_idx` exchanges: for each point the number of the one in its place in a mirrored picture."""
    if flips in NOTHING:
        return None
    texts = flips if isinstance(flips, list) else []
    order = [-1 if (number := small_number(text)) is None else number for text in texts]
    if sorted(order) != list(range(points)) or any(order[other] != index for index, other in enumerate(order)):
        raise DataError(
            f"{where}: flip_idx: expected the numbers 0 to {points - 1}, each pair of points exchanged, found {flips!r}"
        )
    return [(index, other) for index, other in enumerate(order) if index < other]


def _point_names(names: Any, points: int, where: str) -> list[str]:
    """`kpt_names`, a list or one for each class, of which the first counts; else numbers from 0."""
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    if names in NOTHING:
        return list(map(str, range(points)))
    if not isinstance(names, list) or len(names) != points or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: kpt_names: expected the names of {points} points, found {names!r}")
    return names

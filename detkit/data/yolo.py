"""The layout of darknet's descendants: a YAML file, folders of pictures, a text file of labels beside each picture.

root/data.yaml              path, train, val, test: where the pictures are; names: the classes; nc: how many, if given
root/images/train/a.jpg     a picture
root/labels/train/a.txt     its objects, a line each

The path of a label file follows from that of its picture: the last folder called `images` becomes `labels`, the suffix
`.txt`; without such a folder it lies beside the picture. A picture without a label file has no objects.
A line is `class cx cy w h`: the index of the class, then the centre and the sides of the box as shares of the upright
picture. With more columns it is a polygon, `class x1 y1 x2 y2 x3 y3 ...`, which is read as its bounding box.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from detkit.config import parse_yaml
from detkit.data.checks import Box, DataError, FilesConfig, RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.data.pictures import IMAGE_SUFFIXES, upright_size
from detkit.data.yolo_files import (
    PictureFolder,
    find_pictures,
    label_path,
    relative_name,
    split_entries,
)
from detkit.structures import Categories, Size

NOT_LABELS = ("classes.txt",)  # the list of names that labelImg writes among the labels
MAX_SHARE = 2.0  # a larger coordinate is one in pixels, not a share of a picture whose border it passes a little
MAX_LINE = 60  # characters of a faulty line that a message quotes


class YOLODataConfig(FilesConfig):
    """Data described by a YAML file in the layout above. The classes are its `names`.

    root   the folder that holds data.yaml, or the YAML file itself
    train  the key of that file whose pictures are trained on; likewise val, which may be `test`
    """

    name: Literal["yolo"] = "yolo"
    train: str = "train"
    val: str = "val"


@dataclass(frozen=True, slots=True)
class _LabelledPicture:
    """One picture with the objects of its label file.

    labelled  whether there is a label file
    repeated  number of lines that repeat an earlier one
    """

    image: RawImage
    labelled: bool
    repeated: int


def read_yolo(config: YOLODataConfig, split: Literal["train", "val"]) -> ImageDataset:
    """Reads one split. Raises DataError naming the file, the line and the fix."""
    key = config.train if split == "train" else config.val
    path = _yaml_path(Path(config.root))
    content = _read_yaml(path)
    names = _class_names(content, path)
    root = path.parent / str(content.get("path") or "")
    if not root.is_dir():
        raise DataError(f"{path}: path: the folder {root} does not exist; paths are relative to this file")
    folders = [find_pictures(entry, root, f"{path}: {key}") for entry in split_entries(content, key, split, path)]
    pictures = [picture for folder in folders for picture in folder.pictures]
    picture, count = Counter(map(os.path.normpath, pictures)).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: {key}: names the picture {picture} {count} times; once is enough")
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        items = list(pool.map(partial(_read_picture, root=root, names=names), pictures))
    if not any(item.labelled for item in items):
        raise DataError(
            f"{path}: {key}: none of {len(items)} pictures has a label file; expected {label_path(pictures[0])} for "
            f"{pictures[0]}"
        )
    return ImageDataset(
        [item.image for item in items] + [image for folder in folders for image in _unused_label_files(folder, root)],
        name=f"yolo {split} ({path})",
        categories=Categories(names, tuple(range(len(names)))),
        on_bad_label=config.on_bad_label,
        decode=config.check_images,
        notes={
            "image without a label file": sum(not item.labelled for item in items),
            "line repeated and read once": sum(item.repeated for item in items),
        },
    )


def _yaml_path(root: Path) -> Path:
    """The YAML file: `root` itself, or data.yaml in it."""
    path = root if root.suffix.lower() in (".yaml", ".yml") and not root.is_dir() else root / "data.yaml"
    if path.is_file():
        return path
    if not path.parent.is_dir():
        raise DataError(f"data.root: the folder {path.parent} does not exist; see datasets/README.md")
    others = sorted(str(other) for suffix in ("yaml", "yml") for other in path.parent.glob(f"*.{suffix}"))
    hint = f"set data.root to one of {', '.join(others)}" if others else "there is no YAML file; see datasets/README.md"
    raise DataError(f"data.root: {path} does not exist; {hint}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a mapping with train, val and names, found {type(content).__name__}")
    if "kpt_shape" in content:
        raise DataError(f"{path}: kpt_shape: keypoints are not read; export the boxes alone and leave this key out")
    return content


def _class_names(content: dict[str, Any], path: Path) -> tuple[str, ...]:
    """`names`: a list, or a mapping whose keys are 0 to K - 1 in any order."""
    names, nc = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if set(names) != set(map(str, range(len(names)))):
            raise DataError(f"{path}: names: expected the ids 0 to {len(names) - 1}, found {', '.join(names)}")
        names = [names[str(label)] for label in range(len(names))]
    if not isinstance(names, list) or not names or not all(type(name) in (str, int) for name in names):
        raise DataError(f"{path}: names: expected the names of the classes, as [cat, dog], found {names!r}")
    names = list(map(str, names))
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: names: {count} classes are called {name!r}; each needs a name of its own")
    if nc is not None and nc != len(names):
        raise DataError(f"{path}: nc: says {nc!r} classes, but names has {len(names)}; correct it or leave it out")
    return tuple(names)


def _unused_label_files(folder: PictureFolder, root: Path) -> list[RawImage]:
    """The label files without a picture, each as an image with that problem, so that no object is lost silently."""
    known = {label_path(picture) for picture in folder.pictures}
    files = {path for labels in folder.labels for path in labels.rglob("*.txt")} - known
    problem = f"no picture belongs to this label file ({', '.join(IMAGE_SUFFIXES)}); add it or delete the file"
    return [
        RawImage(relative_name(path, root), str(path), relative_name(path, root), None, (), problem)
        for path in sorted(files)
        if path.name[0] != "." and path.name not in NOT_LABELS
    ]


def _read_picture(picture: Path, root: Path, names: Sequence[str]) -> _LabelledPicture:
    name, path = relative_name(picture, root), label_path(picture)
    where = relative_name(path, root)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return _LabelledPicture(RawImage(name, str(picture), name, None, ()), False, 0)
    except (UnicodeDecodeError, OSError) as error:
        problem = f"{where}: expected UTF-8 text, an object a line: {error}"
        return _LabelledPicture(RawImage(name, str(picture), name, None, (), problem), True, 0)
    first: dict[tuple[str, ...], int] = {}  # columns -> number of the first line with them
    filled = [(number, tuple(line.split())) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, columns in filled:
        first.setdefault(columns, number)
    size = upright_size(str(picture), decode=False)
    # The check reports a picture that cannot be read; its boxes cannot be converted to pixels.
    objects = () if isinstance(size, str) else tuple(_object(c, f"{where}:{n}", size, names) for c, n in first.items())
    return _LabelledPicture(RawImage(name, str(picture), name, None, objects), True, len(filled) - len(first))


def _object(columns: Sequence[str], where: str, size: Size, names: Sequence[str]) -> RawObject:
    """One line; `where` is its file and number."""
    line = " ".join(columns)
    quoted = repr(line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}...")
    problem, label, box = None, -1, (0.0, 0.0, 0.0, 0.0)
    if len(columns) != 5 and (len(columns) < 7 or len(columns) % 2 == 0):
        expected = "expected class cx cy w h, or class and at least 3 points x y"
        return RawObject(where, label, box, f"{expected}; found {len(columns)} columns: {quoted}")
    try:
        number, *shares = map(float, columns)
    except ValueError:
        return RawObject(where, label, box, f"expected numbers alone, found {quoted}")
    if not number.is_integer() or not 0 <= number < len(names):
        known = f"0 ({names[0]}) to {len(names) - 1} ({names[-1]})"
        problem = f"the class {columns[0]} is not known; the names are {known}"
    elif any(MAX_SHARE < abs(share) < math.inf for share in shares):
        problem = f"expected shares of the picture, 0 to 1, found {quoted}; divide pixels by its width and height"
    else:
        label, box = int(number), _box(shares, size)
        where = f"{where} ({names[label]})"
    return RawObject(where, label, box, problem)


def _box(shares: Sequence[float], size: Size) -> Box:
    """xyxy in px of `cx cy w h` or of the points of a polygon."""
    height, width = size
    if len(shares) == 4:
        cx, cy, w, h = shares
        return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
    xs, ys = shares[::2], shares[1::2]
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height

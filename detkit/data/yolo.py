"""The layout of darknet's descendants: a YAML file, folders of pictures, a text file of labels beside each picture.

root/data.yaml              path, train, val, test: where the pictures are; names: the classes; nc: how many, if given
root/images/train/a.jpg     a picture
root/labels/train/a.txt     its objects, a line each

The path of a label file follows from that of its picture: the last folder called `images` becomes `labels`, the suffix
`.txt`; without such a file it lies beside the picture. A picture without a label file has no objects. `yolo_labels.py`
says what stands in it, `yolo_description.py` what else may be instead of the YAML file.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detkit.data.check_cache import picture_sizes
from detkit.data.checks import Check, DataError, FilesConfig, RawImage, check_images
from detkit.data.classes import choose_classes
from detkit.data.dataset import ImageDataset
from detkit.data.picture_names import RESPELLED
from detkit.data.pictures import IMAGE_SUFFIXES
from detkit.data.yolo_description import read_description
from detkit.data.yolo_files import LABEL_SUFFIXES, PictureFolder, find_pictures, label_path, relative_name
from detkit.data.yolo_labels import LabelFile, LineReader, point_shape, read_labels
from detkit.structures import COLUMNS, Categories, Column, Size

NOT_LABELS = ("classes.txt",)  # the list of names that labelImg writes among the labels


class YOLODataConfig(FilesConfig):
    """Data described by a YAML file in the layout above. The classes are its `names`.

    root   the folder that holds data.yaml, or darknet's obj.data, or only classes.txt; or such a file itself
    train  the key of that file whose pictures are trained on; likewise val, which may be `test`. null: there is no
           validation
    """

    name: Literal["yolo"] = "yolo"
    train: str = "train"
    val: str | None = "val"


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture and the label file that belongs to it.

    size    (h, w), or why it cannot be read
    labels  None: there is no label file at `label_path`
    """

    path: Path
    size: Size | str
    label_path: Path
    labels: LabelFile | None


def read_yolo(
    config: YOLODataConfig,
    split: Literal["train", "val"],
    check: Check = check_images,
    columns: Collection[Column] = COLUMNS,
) -> ImageDataset:
    """Reads one split. Raises DataError naming the file, the line and the fix."""
    description = read_description(Path(config.root))
    key = config.train if split == "train" else config.val
    entries = description.entries(key, split)
    root, moved = description.root(entries)
    where, others = f"{description.path}: {key}", description.other_entries(entries)
    folders = [find_pictures(entry, root, others, where) for entry in entries]
    listed = [picture for folder in folders for picture in folder.pictures]
    paths = list({os.path.normpath(path): path for path in listed}.values())
    sizes = picture_sizes(list(map(str, paths)), decode=False, name=where)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        pictures = list(pool.map(_read_picture, paths, sizes))
    files = [picture.labels for picture in pictures if picture.labels is not None]
    if not files:
        expected = f"expected {pictures[0].label_path} for {paths[0]}"
        raise DataError(f"{where}: none of {len(paths)} pictures has a label file; {expected}")
    points = description.points or point_shape(files)
    reader = LineReader(description.names, points, columns)
    images = {os.path.normpath(picture.path): _image(picture, root, reader) for picture in pictures}
    unused = [image for folder in folders for image in _unused_label_files(folder, pictures, root)]
    images_of_split = [images[os.path.normpath(path)] for path in listed] if split == "train" else list(images.values())
    keypoints = description.keypoints(points) if points and "keypoints" in columns else None
    categories = Categories(tuple(description.names.values()), tuple(description.names), keypoints)
    images_of_split, categories, left_out = choose_classes([*images_of_split, *unused], categories, config)
    repeated = "and trained on as often" if split == "train" else "and read once"
    return ImageDataset(
        images_of_split,
        name=f"yolo {split} ({description.path})",
        categories=categories,
        on_bad_label=config.on_bad_label,
        decode=config.check_images,
        check=check,
        notes={
            "image without a label file": len(pictures) - len(files),
            f"picture listed again {repeated}": len(listed) - len(paths),
            "path that is not here: the folder of the description is taken": moved,
            RESPELLED: sum(folder.respelled for folder in folders),
            **reader.notes,
            **left_out,
        },
    )


def _read_picture(path: Path, size: Size | str) -> _Picture:
    labels = label_path(path)
    return _Picture(path, size, labels, read_labels(labels))


def _image(picture: _Picture, root: Path, reader: LineReader) -> RawImage:
    name, where = relative_name(picture.path, root), relative_name(picture.label_path, root)
    labels = picture.labels or LabelFile()
    reader.notes.update(labels.notes)
    problem = labels.problem and f"{where}: {labels.problem}"
    size = picture.size
    if isinstance(size, str):  # the check says so; without a size the boxes cannot be converted to pixels
        return RawImage(name, str(picture.path), name, None, (), problem)
    objects = [reader.read(line, f"{where}:{number}", size) for line, number in labels.lines.items()]
    return RawImage(name, str(picture.path), name, None, objects, problem)


def _unused_label_files(folder: PictureFolder, pictures: Sequence[_Picture], root: Path) -> list[RawImage]:
    """The label files without a picture, each as an image with that problem, so that no object is lost silently."""
    known = {picture.label_path for picture in pictures}
    files = {path for labels in folder.labels for suffix in LABEL_SUFFIXES for path in labels.rglob(f"*{suffix}")}
    problem = f"no picture belongs to this label file ({', '.join(IMAGE_SUFFIXES)}); add it or delete the file"
    return [
        RawImage(relative_name(path, root), str(path), relative_name(path, root), None, (), problem)
        for path in sorted(files - known)
        if path.name[0] != "." and path.name not in NOT_LABELS
    ]

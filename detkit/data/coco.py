"""COCO: one JSON file a split with images, annotations and categories."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from detkit.config import PathText
from detkit.data.checks import Check, DataError, FilesConfig, NoValidation, RawImage, RawObject, check_images
from detkit.data.classes import choose_classes, merge_classes
from detkit.data.coco_annotations import COCOAnnotations, coco_number
from detkit.data.coco_classes import COCOClasses, Rows, coco_classes, match_classes
from detkit.data.coco_ids import Id, IdTable, plain_id
from detkit.data.coco_keypoints import COCOKeypoints, coco_keypoints
from detkit.data.dataset import ImageDataset
from detkit.data.picture_names import RESPELLED, find, locate
from detkit.structures import COLUMNS, Column, Size

SEE = "see datasets/README.md"


class COCOConfig(FilesConfig):
    """COCO, or one's own data in its format. The classes are the categories of the files, in the order of their ids.

    root               the folder that the other paths are relative to
    train_images       folder that the `file_name`s are relative to; likewise val_images. null: where the pictures are,
                       beside the JSON file or in images, train2017, train of this folder or of `root`
    train_annotations  JSON file; likewise val_annotations, whose classes are those of the training file by name. null:
                       there is no validation
    """

    name: Literal["coco"] = "coco"
    train_images: PathText | None = None
    train_annotations: PathText = "annotations/instances_train2017.json"
    val_images: PathText | None = None
    val_annotations: PathText | None = "annotations/instances_val2017.json"


def read_coco(
    config: COCOConfig,
    split: Literal["train", "val"],
    check: Check = check_images,
    columns: Collection[Column] = COLUMNS,
) -> ImageDataset:
    """Reads one split. Raises DataError naming the file, the annotation and the fix."""
    name = config.train_annotations if split == "train" else config.val_annotations
    if name is None:
        raise NoValidation(
            "data.val_annotations: null: there is no validation split; to have one, set it to a COCO file"
        )
    path, train = Path(config.root, name), Path(config.root, config.train_annotations)
    content = read_tables(path, may_lack_annotations=split == "val")
    classes, keypoints = coco_classes(content, path), COCOKeypoints()
    trained = None
    if split == "val" and train.is_file():  # evaluation alone needs no training files
        trained, rows = _classes_of(train, train.stat().st_mtime_ns)
        classes = match_classes(classes, trained.categories, path)
    if "keypoints" in columns:
        keypoints = _keypoints_of(content["categories"], classes, config)
        if trained is not None:
            keypoints = _match_keypoints(keypoints, _keypoints_of(rows, trained, config), path)
    ids = read_image_ids(content["images"], path)
    paths, respelled = _picture_paths(config, split, path, content["images"])
    sizes = {number: size for number, row in enumerate(content["images"]) if (size := _size(row)) is not None}
    objects = COCOAnnotations(classes, IdTable(ids), path, columns, keypoints.points, sizes)
    objects.read(content["annotations"])
    images = [
        _image(row, image_id, picture, path, sizes.get(number), objects.by_image[number])
        for number, (row, image_id, picture) in enumerate(zip(content["images"], ids, paths, strict=True))
    ]
    images, categories, left_out = choose_classes(images, classes.categories, config)
    return ImageDataset(
        images,
        name=f"coco {split} ({path.name})",
        categories=replace(categories, keypoints=keypoints.categories),
        on_bad_label=config.on_bad_label,
        decode=config.check_images,
        check=check,
        notes={**classes.notes, **keypoints.notes, **objects.notes, **left_out, RESPELLED: respelled},
    )


def read_tables(path: Path, *, may_lack_annotations: bool = False) -> dict[str, Rows]:
    """The content of the file, after a check that its three tables are lists of mappings.

    may_lack_annotations  as the files of a test set do, whose objects are not published
    """
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        others = sorted(other.name for other in path.parent.glob("*.json"))
        raise DataError(f"{path} does not exist; JSON files there: {', '.join(others) or 'none'}; {SEE}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if isinstance(content, dict) and content.get("annotations") is None and may_lack_annotations:
        content["annotations"] = []
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: expected a COCO file with a list of mappings under {key!r}")
    if not content["images"]:
        raise DataError(f"{path}: its list of images is empty")
    tables: dict[str, Rows] = content
    return tables


@lru_cache(maxsize=4)
def _classes_of(path: Path, _mtime: int) -> tuple[COCOClasses, Rows]:
    """The classes of a file, and its categories.

    Cached, because reading the file of a large training set takes seconds; a changed file has another `_mtime`.
    """
    content = read_tables(path, may_lack_annotations=True)
    return coco_classes(content, path), content["categories"]


def _keypoints_of(rows: Rows, classes: COCOClasses, config: COCOConfig) -> COCOKeypoints:
    """Those of the classes that the configuration chooses; `rows` are the categories of the file."""
    merged = merge_classes(classes.names, config.merge)
    chosen = [
        label >= 0 and (config.classes is None or name in config.classes)
        for name, label in zip(merged, classes.labels, strict=True)
    ]
    return coco_keypoints(rows, classes.names, chosen)


def _match_keypoints(own: COCOKeypoints, train: COCOKeypoints, path: Path) -> COCOKeypoints:
    """`own`, which must be those of the training file if both have any. Raises DataError."""
    if own.categories is None or train.categories is None:
        return replace(own, categories=own.categories or train.categories)
    if own.categories.names != train.categories.names:
        raise DataError(
            f"{path}: its keypoints ({', '.join(own.categories.names)}) are not those of the training file "
            f"({', '.join(train.categories.names)}); both need the same in the same order"
        )
    return replace(own, categories=train.categories)


def read_image_ids(rows: Rows, path: Path) -> list[Id]:
    """The ids of the images of a file. Raises DataError if one is missing or there twice."""
    ids: list[Id] = []
    for number, row in enumerate(rows):
        image_id = plain_id(row.get("id"))
        if image_id is None:
            raise DataError(f"{path}: images[{number}]: expected an integer or a text as 'id', got {row.get('id')!r}")
        ids.append(image_id)
    image_id, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: {count} images have the id {image_id!r}; each needs its own")
    return ids


def _picture_paths(config: COCOConfig, split: str, path: Path, rows: Rows) -> tuple[list[Path], int]:
    """The picture of each row, and how many are spelled differently from their file."""
    root = Path(config.root)
    given = config.train_images if split == "train" else config.val_images
    names = [picture_name(row) for row in rows]
    if given is not None:
        folder = root / given
        if not folder.is_dir():
            raise DataError(f"data.{split}_images: the folder {folder} does not exist; {SEE}")
        return _locate_once(names, folder, path)
    below = ("", "images", f"{split}2017", split)
    folders = list(dict.fromkeys(base / name for base in (path.parent, root) for name in below))
    first = [name for name in names if name][:10]
    counts = [sum(find(name, [folder])[0] is not None for name in first) for folder in folders]
    if first and not any(counts):
        raise DataError(
            f"data.{split}_images: {first[0]}, the first picture of {path}, is in none of the folders "
            f"{', '.join(map(str, folders))}; set it to the folder of the pictures"
        )
    return _locate_once(names, folders[counts.index(max(counts))], path)


def _locate_once(names: Sequence[str], folder: Path, path: Path) -> tuple[list[Path], int]:
    """As `locate`. Raises DataError if two images are one file: whose objects they are cannot be told."""
    located, respelled = locate(names, [folder], str(path))
    counts = Counter(file for name, file in zip(names, located, strict=True) if name)
    picture, count = max(counts.items(), key=itemgetter(1), default=(None, 0))
    if count > 1:
        raise DataError(f"{path}: {count} images are the file {picture}; each needs one of its own")
    return located, respelled


def picture_name(row: dict[str, Any]) -> str:
    """Its `file_name`, or the last part of the URL where it has none; empty if it has neither."""
    name, url = row.get("file_name"), row.get("coco_url")
    if isinstance(name, str) and name:
        return name
    return url.rstrip("/").rpartition("/")[2] if isinstance(url, str) else ""


def _size(row: dict[str, Any]) -> Size | None:
    height, width = coco_number(row.get("height")), coco_number(row.get("width"))
    return None if height is None or width is None else (round(height), round(width))


def _image(
    row: dict[str, Any], image_id: Id, picture: Path, path: Path, size: Size | None, objects: Sequence[RawObject]
) -> RawImage:
    problem = None if picture_name(row) else "has no 'file_name'"
    return RawImage(image_id, str(picture), f"{path.name}: image {image_id!r}", size, tuple(objects), problem)

"""COCO: one JSON file a split with images, annotations and categories."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from detkit.data.checks import MAX_LINES, Box, DataError, FilesConfig, RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.structures import Categories, Size


class COCOConfig(FilesConfig):
    """COCO, or one's own data in its format. The classes are the categories of the files, in the order of their ids.

    root               the folder that the other paths are relative to
    train_images       folder that the `file_name`s are relative to; likewise val_images
    train_annotations  JSON file; likewise val_annotations, with the same categories
    """

    name: Literal["coco"] = "coco"
    train_images: str = "train2017"
    train_annotations: str = "annotations/instances_train2017.json"
    val_images: str = "val2017"
    val_annotations: str = "annotations/instances_val2017.json"


def read_coco(config: COCOConfig, split: Literal["train", "val"]) -> ImageDataset:
    """Reads one split. Raises DataError naming the file, the annotation and the fix."""
    root = Path(config.root)
    train, val = root / config.train_annotations, root / config.val_annotations
    path, other = (train, val) if split == "train" else (val, train)
    folder = root / (config.train_images if split == "train" else config.val_images)
    if not folder.is_dir():
        raise DataError(f"data.{split}_images: the folder {folder} does not exist; see datasets/README.md")
    content = _read_json(path)
    names = _category_names(content, path)
    if split == "val" and other.is_file():  # evaluation alone needs no training files
        _check_same(_category_names_of_file(other, other.stat().st_mtime_ns), names, train, val)
    return ImageDataset(
        _images(content, path, folder, {category_id: label for label, category_id in enumerate(names)}),
        name=f"coco {split} ({path.name})",
        categories=Categories(tuple(names.values()), tuple(names)),
        on_bad_label=config.on_bad_label,
        decode=config.check_images,
    )


def _read_json(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The content of the file, after a check that its three tables are lists of mappings."""
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        others = sorted(other.name for other in path.parent.glob("*.json"))
        raise DataError(f"{path} does not exist; JSON files there: {', '.join(others) or 'none'}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: expected a COCO file with a list of mappings under {key!r}")
    if not content["images"]:
        raise DataError(f"{path}: its list of images is empty")
    tables: dict[str, list[dict[str, Any]]] = content
    return tables


def _category_names(content: dict[str, list[dict[str, Any]]], path: Path) -> dict[int, str]:
    """id -> name in the order of the ids, which may have gaps and may begin with 0."""
    rows = [(row.get("id"), row.get("name")) for row in content["categories"]]
    ids, names = [row[0] for row in rows], [row[1] for row in rows]
    if not rows or not all(type(i) is int and isinstance(n, str) for i, n in rows):
        raise DataError(f"{path}: expected categories with an integer 'id' and a 'name', got {rows[:3]}")
    for kind, values in (("id", ids), ("name", names)):
        value, count = Counter(values).most_common(1)[0]
        if count > 1:
            raise DataError(f"{path}: {count} categories have the {kind} {value!r}; each needs its own")
    return dict(sorted(rows))  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def _category_names_of_file(path: Path, _mtime: int) -> dict[int, str]:
    """Cached, because reading the file of a large training set takes seconds; a changed file has another `_mtime`."""
    return _category_names(_read_json(path), path)


def _check_same(train: dict[int, str], val: dict[int, str], train_path: Path, val_path: Path) -> None:
    differing = [i for i in sorted({*train, *val}) if train.get(i) != val.get(i)]
    if differing:
        first = differing[0]
        raise DataError(
            f"the categories of {train_path} and {val_path} differ in {len(differing)} ids: id {first} is "
            f"{train.get(first)!r} and {val.get(first)!r}; both files need the same categories"
        )


def _images(
    content: dict[str, list[dict[str, Any]]], path: Path, folder: Path, labels: dict[int, int]
) -> list[RawImage]:
    objects: defaultdict[Any, list[RawObject]] = defaultdict(list)
    image_ids = [row.get("id") for row in content["images"]]
    kinds = {type(image_id) for image_id in image_ids}
    if not (kinds == {int} or kinds == {str}):
        raise DataError(f"{path}: expected image ids that are all integers or all strings, got {image_ids[:3]}")
    image_id, count = Counter(image_ids).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: {count} images have the id {image_id!r}; each needs its own")
    known, unknown = set(image_ids), []
    for number, row in enumerate(content["annotations"]):
        item = _object(row, number, labels)
        if row.get("image_id") in known:
            objects[row["image_id"]].append(item)
        else:
            unknown.append(f"  {item.where}: the image id {row.get('image_id')!r} is not among the images")
    if unknown:
        more = [f"  ... and {len(unknown) - MAX_LINES} more"] if len(unknown) > MAX_LINES else []
        raise DataError("\n".join([f"{path}: annotations of unknown images", *unknown[:MAX_LINES], *more]))
    return [_image(row, path, folder, objects[row["id"]]) for row in content["images"]]


def _image(row: dict[str, Any], path: Path, folder: Path, objects: list[RawObject]) -> RawImage:
    name, height, width = row.get("file_name"), row.get("height"), row.get("width")
    size: Size | None = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    problem = None if isinstance(name, str) and name else "has no 'file_name'"
    where = f"{path.name}: image {row['id']!r}"
    return RawImage(row["id"], str(folder / str(name)), where, size, tuple(objects), problem)


def _object(row: dict[str, Any], number: int, labels: dict[int, int]) -> RawObject:
    where = f"annotation {row['id']!r}" if "id" in row else f"annotations[{number}]"
    category, area, problem = row.get("category_id"), row.get("area"), None
    box, label = _box(row.get("bbox")), -1
    if type(category) is not int or category not in labels:
        problem = f"the category id {category!r} is not among the categories; known ids: {', '.join(map(str, labels))}"
    elif box is None:
        problem = f"expected 'bbox' [x, y, width, height], got {row.get('bbox')!r}"
    else:
        label = labels[category]
    columns: dict[str, Any] = {"ignore": bool(row.get("iscrowd", 0))}
    if isinstance(area, (int, float)) and not math.isnan(area):
        columns["area"] = area
    return RawObject(where, label, box or (0.0, 0.0, 0.0, 0.0), problem, columns)


def _box(bbox: Any) -> Box | None:
    """xyxy of COCO's `[x, y, width, height]`; None if it is not four numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(value, (int, float)) for value in bbox):
        return None
    x, y, width, height = map(float, bbox)
    return x, y, x + width, y + height

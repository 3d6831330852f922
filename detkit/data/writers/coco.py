"""COCO's format: `train.json` with the pictures of `train/`, likewise for the other splits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.coco_keypoints import write_keypoints
from detkit.data.coco_segmentation import DECIMALS, write_segmentation
from detkit.data.writers.pictures import Picture
from detkit.files import write_text
from detkit.structures import Categories, EncodedMasks

ONE_FOLDER = False


def write(folder: Path, splits: Mapping[str, Sequence[Picture]], categories: Categories, _: Counter[str]) -> None:
    """Ignored objects are crowds. Polygons stay polygons, other masks are compressed run lengths.

    Ids that are whole numbers stay, others are counted from 1.
    """
    known = _are_numbers(categories.ids)
    category_ids = [*categories.ids] if known else [*range(1, len(categories) + 1)]
    rows: list[dict[str, Any]] = [
        {"id": i, "name": n, "supercategory": ""} for i, n in zip(category_ids, categories.names, strict=True)
    ]
    with_keypoints = _labels_with_keypoints(splits)
    if categories.keypoints is not None:
        skeleton = [[one + 1, other + 1] for one, other in categories.keypoints.skeleton]
        for label in with_keypoints:
            rows[label] |= {"keypoints": list(categories.keypoints.names), "skeleton": skeleton}
    own = {split: _are_numbers([picture.truth.image_id for picture in pictures]) for split, pictures in splits.items()}
    start = 1
    for split, pictures in splits.items():
        ids = [p.truth.image_id for p in pictures] if own[split] else [*range(start, start + len(pictures))]
        start += len(pictures)
        images = [
            {"id": i, "file_name": p.name, "width": p.truth.size[1], "height": p.truth.size[0]}
            for i, p in zip(ids, pictures, strict=True)
        ]
        annotations = list(_annotations(ids, pictures, category_ids, with_keypoints))
        content = {"images": images, "annotations": annotations, "categories": rows}
        write_text(folder / f"{split}.json", json.dumps(content, ensure_ascii=False))


def picture_path(split: str, name: str) -> str:
    return f"{split}/{name}"


def settings(folder: Path, splits: Sequence[str], _: Categories) -> dict[str, Any]:
    """The section `data` of a configuration."""
    train, val = _train_and_val(splits)
    return {
        "name": "coco",
        "root": str(folder),
        "train_annotations": f"{train}.json",
        "train_images": train,
        "val_annotations": f"{val}.json" if val else None,
        "val_images": val,
    }


def _train_and_val(splits: Sequence[str]) -> tuple[str, str | None]:
    train = "train" if "train" in splits else splits[0]
    return train, next((name for name in ("val", "test") if name in splits and name != train), None)


def _labels_with_keypoints(splits: Mapping[str, Sequence[Picture]]) -> set[int]:
    """The classes of which some object has a labelled keypoint."""
    labels: set[int] = set()
    for objects in (picture.truth.objects for pictures in splits.values() for picture in pictures):
        if objects.keypoints is not None:
            labels.update(objects.labels[(objects.keypoints[..., 2] > 0).any(axis=1)].tolist())
    return labels


def _annotations(
    ids: Sequence[Any], pictures: Sequence[Picture], category_ids: Sequence[Any], with_keypoints: Collection[int]
) -> Iterator[dict[str, Any]]:
    number = 0
    for image_id, picture in zip(ids, pictures, strict=True):
        objects = picture.truth.objects
        areas = objects.columns()["area"].tolist()
        rows = zip(objects.boxes.tolist(), objects.labels.tolist(), objects.ignore.tolist(), areas, strict=True)
        for row, ((x1, y1, x2, y2), label, ignored, area) in enumerate(rows):
            number += 1
            x, y = round(x1, DECIMALS), round(y1, DECIMALS)
            yield {
                "id": number,
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [x, y, round(x2 - x, DECIMALS), round(y2 - y, DECIMALS)],
                "area": round(area, DECIMALS),
                "iscrowd": int(ignored),
                "segmentation": _segmentation(objects.masks, row),
                **(_keypoints(objects.keypoints, row) if label in with_keypoints else {}),
            }


def _segmentation(masks: Any, row: int) -> Any:
    if not isinstance(masks, EncodedMasks):
        return []
    height, width = masks.sizes[row].tolist()
    return write_segmentation(masks.decode(row), (height, width))


def _keypoints(keypoints: np.ndarray | None, row: int) -> dict[str, Any]:
    if keypoints is None:
        return {}
    return {
        "keypoints": write_keypoints(keypoints[row], DECIMALS),
        "num_keypoints": int((keypoints[row, :, 2] > 0).sum()),
    }


def _are_numbers(ids: Sequence[Any]) -> bool:
    """Whether all are different whole numbers above 0; some tools take 0 for no id."""
    return all(type(each) is int and each > 0 for each in ids) and len(set(ids)) == len(ids)

"""Reads published proposals (COCO results, selective search's MATLAB files) and assigns them to a data set's images.

Legend: N boxes of one image, float32 `[N, 4]` xyxy in continuous original pixels, best first.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.checks import TOLERANCE, DataError
from detkit.data.dataset import ImageDataset
from detkit.structures import Size

MAX_NAMES = 3  # images named in one message


def read_proposals(paths: Sequence[str]) -> dict[str, np.ndarray]:
    """The boxes of each image in the files, by its id as text. Raises DataError naming the file and the fix."""
    boxes: dict[str, np.ndarray] = {}
    for path in map(Path, paths):
        match path.suffix:
            case ".json":
                content = _read_json(path)
            case ".mat":
                content = _read_mat(path)
            case suffix:
                raise DataError(f"{path}: expected proposals as .json (COCO results) or .mat, found {suffix!r}")
        repeated = boxes.keys() & content.keys()
        if repeated:
            raise DataError(f"{path}: {len(repeated)} images are in the files before it too, such as {min(repeated)!r}")
        boxes |= content
    return boxes


def match_proposals(
    dataset: ImageDataset, boxes: Mapping[str, np.ndarray], where: str, *, allow_missing: bool = False
) -> list[np.ndarray]:
    """The boxes of each image of the data set, cut at its borders.

    An entry has the id of its image, or the last part of it: where years of VOC are read together, ids are
    `2007/000005`. Raises DataError, which begins with `where`, if images have no entry or boxes leave their picture.
    """
    matched, missing, outside = [], [], []
    for index in range(len(dataset)):
        image_id, size = str(dataset.image_id(index)), dataset.ground_truth(index).size
        image_boxes = boxes.get(image_id, boxes.get(image_id.rpartition("/")[2]))
        if image_boxes is None:
            missing.append(image_id)
            image_boxes = np.zeros((0, 4), np.float32)
        faulty = image_boxes[_is_outside(image_boxes, size)]
        if len(faulty):
            outside.append(
                f"image {image_id!r}, {size[1]} x {size[0]} (w x h), has {faulty[0].round(2).tolist()} (xyxy)"
            )
        matched.append(image_boxes.clip(0, np.array(size[::-1] * 2, np.float32)))
    if missing and (not allow_missing or len(missing) == len(dataset)):
        raise DataError(
            f"{where}: no entry for {len(missing)} of {len(dataset)} images of {dataset.name}: {_names(missing)}; "
            f"known are {_names(sorted(boxes))}; name the files of both splits in paths, or, if these images have no "
            "proposals, set allow_missing: true"
        )
    if outside:
        raise DataError(
            f"{where}: {len(outside)} of {len(dataset)} images of {dataset.name} have boxes that leave the picture or "
            f"are empty: {outside[0]}; do they belong to pictures of another size?"
        )
    return matched


def _is_outside(boxes: np.ndarray, size: Size) -> np.ndarray:
    """bool `[N]`: boxes more than TOLERANCE over the border, with no part inside the picture, or not finite."""
    start, end = boxes[:, :2], boxes[:, 2:]
    border = np.array(size[::-1], np.float32)
    near = (start >= -TOLERANCE) & (end <= border + TOLERANCE)
    return np.asarray(~(near & (np.minimum(end, border) > np.maximum(start, 0))).all(axis=1))


def _names(ids: Sequence[str]) -> str:
    """The first few ids, for a message."""
    return ", ".join([*map(repr, ids[:MAX_NAMES]), *(["..."] if len(ids) > MAX_NAMES else [])]) or "none"


def _read_json(path: Path) -> dict[str, np.ndarray]:
    """COCO results: entries with `image_id`, `bbox` (xywh) and `score`; equal scores keep their order."""
    try:
        entries: Any = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of COCO results, found {type(entries).__name__}")
    rows: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    for number, entry in enumerate(entries):
        row = _row(entry)
        if row is None:
            expected = "image_id, bbox [x, y, width, height] and score"
            raise DataError(f"{path}: entry {number}: expected {expected}, found {str(entry)[:120]}")
        rows[str(entry["image_id"])].append(row)
    boxes = {}
    for image_id, image_rows in rows.items():
        x, y, width, height, score = np.array(image_rows).T
        order = np.argsort(-score, kind="stable")
        boxes[image_id] = np.stack([x, y, x + width, y + height], axis=1)[order].astype(np.float32)
    return boxes


def _row(entry: Any) -> tuple[float, ...] | None:
    """x, y, width, height and score of an entry; None if it is not one of COCO results."""
    if not isinstance(entry, dict) or type(entry.get("image_id")) not in (int, str):
        return None
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    values = (*bbox, entry.get("score"))
    return values if all(type(value) in (int, float) and math.isfinite(value) for value in values) else None


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    """Cells `images` (ids) and `boxes` (`[N, 4]` y1, x1, y2, x2: pixels counted from 1, both corners inside)."""
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=("images", "boxes"))
    except NotImplementedError as error:
        raise DataError(f"{path}: a file of MATLAB 7.3, which scipy cannot read; save it there with -v7") from error
    except Exception as error:  # on a damaged file the reader raises exceptions of many kinds
        raise DataError(f"{path}: cannot be read as a MATLAB file: {error}") from error
    images, cells = (content.get(name, np.zeros(0)).ravel() for name in ("images", "boxes"))
    if not len(images) or len(images) != len(cells):
        counts = f"{len(images)} and {len(cells)}"
        raise DataError(f"{path}: expected cells `images` and `boxes`, as many of each, found {counts}")
    boxes = {}
    for name, cell in zip(images, cells, strict=True):
        image_id, corners = "".join(map(str, np.ravel(name))), np.asarray(cell)
        if corners.size and (corners.ndim != 2 or corners.shape[1] != 4 or corners.dtype.kind not in "iuf"):
            actual = f"{corners.dtype} {list(corners.shape)}"
            raise DataError(f"{path}: image {image_id!r}: expected boxes [N, 4], found {actual}")
        if image_id in boxes:
            raise DataError(f"{path}: image {image_id!r} is there twice")
        y1, x1, y2, x2 = corners.reshape(-1, 4).astype(np.float32).T
        boxes[image_id] = np.stack([x1 - 1, y1 - 1, x2, y2], axis=1)
    return boxes

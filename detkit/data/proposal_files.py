"""Proposals in files of others -> boxes of the images of a data set.

Legend: N boxes of one image, float32 `[N, 4]` xyxy in continuous original pixels, those likely to be objects first.
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
                found = _read_json(path)
            case ".mat":
                found = _read_mat(path)
            case suffix:
                raise DataError(f"{path}: expected proposals as .json (COCO results) or .mat, found {suffix!r}")
        repeated = boxes.keys() & found.keys()
        if repeated:
            raise DataError(f"{path}: {len(repeated)} images are in the files before it too, such as {min(repeated)!r}")
        boxes |= found
    return boxes


def match_proposals(
    dataset: ImageDataset, boxes: Mapping[str, np.ndarray], where: str, *, allow_missing: bool = False
) -> list[np.ndarray]:
    """The boxes of each image of the data set, cut at its borders.

    An image is known by its id, or by the last part of it: where years of VOC are read together, ids are `2007/000005`.
    Raises DataError, which begins with `where`, if images have no entry or if boxes are not in their picture.
    """
    matched, missing, outside = [], [], []
    for index in range(len(dataset)):
        image_id, size = str(dataset.image_id(index)), dataset.ground_truth(index).size
        found = boxes.get(image_id, boxes.get(image_id.rpartition("/")[2]))
        if found is None:
            missing.append(image_id)
            found = np.zeros((0, 4), np.float32)
        faults = found[_is_outside(found, size)]
        if len(faults):
            outside.append(
                f"image {image_id!r}, {size[1]} x {size[0]} (w x h), has {faults[0].round(2).tolist()} (xyxy)"
            )
        matched.append(found.clip(0, np.array(size[::-1] * 2, np.float32)))
    if missing and (not allow_missing or len(missing) == len(dataset)):
        raise DataError(
            f"{where}: no entry for {len(missing)} of {len(dataset)} images of {dataset.name}: {_names(missing)}; "
            f"known are {_names(sorted(boxes))}; name the files of both splits in paths, or, if nothing was found in "
            "these images, set allow_missing: true"
        )
    if outside:
        raise DataError(
            f"{where}: {len(outside)} of {len(dataset)} images of {dataset.name} have boxes that leave the picture or "
            f"are empty: {outside[0]}; were they made for pictures of another size?"
        )
    return matched


def _is_outside(boxes: np.ndarray, size: Size) -> np.ndarray:
    """bool `[N]`: more than TOLERANCE over the border, or without a part in the picture; also what is not finite."""
    least, most = boxes[:, :2], boxes[:, 2:]
    end = np.array(size[::-1], np.float32)
    near = (least >= -TOLERANCE) & (most <= end + TOLERANCE)
    return np.asarray(~(near & (np.minimum(most, end) > np.maximum(least, 0))).all(axis=1))


def _names(ids: Sequence[str]) -> str:
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
            wanted = "image_id, bbox [x, y, width, height] and score"
            raise DataError(f"{path}: entry {number}: expected {wanted}, found {str(entry)[:120]}")
        rows[str(entry["image_id"])].append(row)
    boxes = {}
    for image_id, found in rows.items():
        x, y, width, height, score = np.array(found).T
        order = np.argsort(-score, kind="stable")
        boxes[image_id] = np.stack([x, y, x + width, y + height], axis=1)[order].astype(np.float32)
    return boxes


def _row(entry: Any) -> tuple[float, ...] | None:
    """x, y, width, height, score."""
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
    except Exception as error:  # the reader lets through whatever a garbled file makes it stumble over
        raise DataError(f"{path}: cannot be read as a MATLAB file: {error}") from error
    images, cells = (content.get(name, np.zeros(0)).ravel() for name in ("images", "boxes"))
    if not len(images) or len(images) != len(cells):
        found = f"{len(images)} and {len(cells)}"
        raise DataError(f"{path}: expected cells `images` and `boxes`, as many of each, found {found}")
    boxes = {}
    for name, cell in zip(images, cells, strict=True):
        image_id, corners = "".join(map(str, np.ravel(name))), np.asarray(cell)
        if corners.size and (corners.ndim != 2 or corners.shape[1] != 4 or corners.dtype.kind not in "iuf"):
            found = f"{corners.dtype} {list(corners.shape)}"
            raise DataError(f"{path}: image {image_id!r}: expected boxes [N, 4], found {found}")
        if image_id in boxes:
            raise DataError(f"{path}: image {image_id!r} is there twice")
        y1, x1, y2, x2 = corners.reshape(-1, 4).astype(np.float32).T
        boxes[image_id] = np.stack([x1 - 1, y1 - 1, x2, y2], axis=1)
    return boxes

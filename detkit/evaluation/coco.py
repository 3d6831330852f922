"""The COCO box metrics, computed by pycocotools, or to the same bits by kernels of our own in a hundredth of the time.

Boxes become COCO's xywh here and in `data/coco.py`, nowhere else. pycocotools takes an object with id 0 for unmatched
and orders equal scores by image id, so it never sees the data set's own ids: everything is numbered from 1.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.config import UserError
from detkit.ops.compiled import usable
from detkit.structures import Detections, GroundTruth, ImageId

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

CocoBackend: TypeAlias = Literal["pycocotools", "fast"]


class Boxes(NamedTuple):
    """The boxes of a data set, image by image.

    images  int64 `[N]`: the number of the image, from 0
    labels  int64 `[N]`
    xywh    float64 `[N, 4]`
    areas   float64 `[N]`, px^2
    """

    images: np.ndarray
    labels: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray

    def take(self, indices: np.ndarray) -> Boxes:
        return Boxes(*(column[indices] for column in self))


def coco_metrics(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    *,
    backend: CocoBackend = "pycocotools",
) -> tuple[dict[str, float], np.ndarray]:
    """The 12 numbers by name, and AP of every class, float64 `[K]`; all in [0, 1], nan where there is no object.

    `detections[i]` are those of `ground_truth[i]`; at least one image. Ignored objects are crowds: any number of
    detections may fall on one, measured by intersection over the area of the detection. At most 100 detections an image
    and class count. The result is the same to the bit by each `backend`; see `check_backend`.
    """
    check_backend(backend)
    pairs = sorted(zip(ground_truth, detections, strict=True), key=lambda pair: _sort_key(pair[0].image_id))
    images, answers = zip(*pairs, strict=True)
    boxes, labels, areas, crowd = (
        np.concatenate([getattr(image, name) for image in images]) for name in ("boxes", "labels", "area", "ignore")
    )
    objects = _join([len(image.labels) for image in images], boxes, labels)._replace(areas=areas.astype(np.float64))
    boxes, labels, scores = (
        torch.cat([getattr(answer, name) for answer in answers]).numpy() for name in ("boxes", "labels", "scores")
    )
    found = _join([len(answer) for answer in answers], boxes, labels)

    summary = COCOeval(iouType="bbox")
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        if backend == "fast":
            from detkit.evaluation.coco_fast import curves  # numba

            summary.eval = curves(objects, crowd, found, scores, num_classes, summary.params)
        else:
            summary.eval = _pycocotools(objects, crowd, found, scores, len(pairs), num_classes)
        summary.summarize()
    precision = summary.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, K] of all areas and 100 detections
    numbers, per_class = _absent_to_nan(summary.stats), _absent_to_nan(precision.mean(axis=(0, 1)))
    return dict(zip(METRICS, numbers.tolist(), strict=True)), per_class


def check_backend(backend: CocoBackend) -> None:
    """Raises UserError where this process cannot compile the kernels of `fast`."""
    if backend not in get_args(CocoBackend):
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(get_args(CocoBackend))}")
    if backend == "fast" and not usable():
        raise UserError(
            "eval.coco_backend: fast is compiled by numba, which is missing or switched off here; "
            "pip install numba, or choose pycocotools"
        )


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """COCO boxes, float64, of xyxy `[N, 4]`, rounded to a thousandth of a pixel.

    float32 corners hold little more than that, and it gives COCO's two decimals back exactly: an annotated width of
    348.26 would else return as 348.2600097656 and could fall on the other side of a threshold.
    """
    corners = boxes.astype(np.float64)
    return np.round(np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]), 3)


def _join(counts: Sequence[int], boxes: np.ndarray, labels: np.ndarray) -> Boxes:
    """Of the number of each image's boxes, xyxy and labels; the areas are those of the boxes."""
    xywh = to_xywh(boxes)
    return Boxes(np.repeat(np.arange(len(counts)), counts), labels, xywh, xywh[:, 2] * xywh[:, 3])


def _pycocotools(
    objects: Boxes, crowd: np.ndarray, found: Boxes, scores: np.ndarray, num_images: int, num_classes: int
) -> dict[str, np.ndarray]:
    """`precision` `[T, R, K, A, M]` and `recall` `[T, K, A, M]`: IoU thresholds, recalls, classes, areas and limits."""
    truth = _coco(_entries(objects, iscrowd=crowd.astype(np.int64)), num_images, num_classes)
    evaluation = COCOeval(truth, _coco(_entries(found, score=scores), num_images, num_classes), iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    curves: dict[str, np.ndarray] = evaluation.eval
    return curves


def _entries(boxes: Boxes, **more: np.ndarray) -> list[dict[str, Any]]:
    """An annotation a box, with one more field."""
    columns = {"image_id": boxes.images + 1, "category_id": boxes.labels + 1, "bbox": boxes.xywh, "area": boxes.areas}
    columns |= more
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"id": number, **dict(zip(columns, row, strict=True))} for number, row in enumerate(rows, start=1)]


def _coco(annotations: list[dict[str, Any]], num_images: int, num_classes: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, num_images + 1)],
        "categories": [{"id": number} for number in range(1, num_classes + 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _sort_key(image_id: ImageId) -> tuple[bool, ImageId]:
    """Numbers by value, then strings by letter."""
    return isinstance(image_id, str), image_id


def _absent_to_nan(values: np.ndarray) -> np.ndarray:
    """pycocotools says -1 where there is no object."""
    return np.where(values < 0, np.nan, values)

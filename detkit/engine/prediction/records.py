"""Detections as plain values: what `detkit predict` writes and `detkit serve` answers."""

from __future__ import annotations

from typing import Any

from detkit.formats import coco_masks
from detkit.nn.selection import KEYPOINT_SCORES
from detkit.structures import Detections, Size


def picture_record(size: Size, detections: Detections) -> dict[str, Any]:
    """Width and height of the picture, `size` being its (h, w), and one dict a detection."""
    return {"width": size[1], "height": size[0], "detections": as_dicts(detections)}


def as_dicts(detections: Detections) -> list[dict[str, Any]]:
    """Class, score and box (xyxy, pixels of the picture) of each detection, best first; `track` in videos
    whose objects are followed, None for one that has no number yet; `mask` as COCO's run lengths and `keypoints` where
    the detector gives them."""
    columns: dict[str, list[Any]] = {
        "class": detections.class_names,
        "score": detections.scores.tolist(),
        "box": detections.boxes.tolist(),
    }
    if detections.objects.track_ids is not None:
        columns["track"] = [None if track < 0 else track for track in detections.objects.track_ids.tolist()]
    if detections.masks is not None:
        columns["mask"] = coco_masks(detections.masks)
    if detections.keypoints is not None:
        columns["keypoints"] = _keypoints(detections)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _keypoints(detections: Detections) -> list[list[dict[str, Any]]]:
    """Name, x, y (pixels of the picture) and score, a logit, of the keypoints of each detection."""
    assert detections.keypoints is not None
    known, scores = detections.categories.keypoints, detections.objects.extra.get(KEYPOINT_SCORES)
    columns: dict[str, Any] = {"x": detections.keypoints[..., 0].tolist(), "y": detections.keypoints[..., 1].tolist()}
    if known is not None:
        columns = {"name": [known.names] * len(detections), **columns}
    if scores is not None:
        columns["score"] = scores.tolist()
    return [
        [dict(zip(columns, point, strict=True)) for point in zip(*rows, strict=True)]
        for rows in zip(*columns.values(), strict=True)
    ]

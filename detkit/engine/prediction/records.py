"""Detections as plain values: what `detkit predict` writes and `detkit serve` answers."""

from __future__ import annotations

from typing import Any

from detkit.structures import Detections, Size


def picture_record(size: Size, detections: Detections) -> dict[str, Any]:
    """Width and height of the picture, `size` being its (h, w), and one dict a detection."""
    return {"width": size[1], "height": size[0], "detections": as_dicts(detections)}


def as_dicts(detections: Detections) -> list[dict[str, Any]]:
    """Class, score and box (xyxy, pixels of the picture) of each detection, best first; `track` in videos
    whose objects are followed, None for one that has no number yet."""
    columns = {
        "class": [detections.categories.names[label] for label in detections.labels.tolist()],
        "score": detections.scores.tolist(),
        "box": detections.boxes.tolist(),
    }
    if detections.objects.track_ids is not None:
        columns["track"] = [None if track < 0 else track for track in detections.objects.track_ids.tolist()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

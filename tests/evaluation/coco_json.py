"""A scene as the two files that pycocotools reads, measured by nothing but pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation.coco import KEYPOINT_METRICS, METRICS
from detkit.structures import Categories, EncodedMasks, GroundTruth


def write_ground_truth(path: Path, images: Sequence[GroundTruth], categories: Categories) -> Path:
    """With the coordinates of COCO's files: keypoints lie half a pixel before those of detkit."""
    annotations: list[dict[str, Any]] = []
    for image in images:
        objects = image.objects
        for k, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist()):
            row: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image.image_id,
                "category_id": categories.ids[objects.labels[k]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1) if objects.area is None else float(objects.area[k]),
                "iscrowd": int(objects.ignore[k]),
            }
            if isinstance(objects.masks, EncodedMasks) and (rle := objects.masks.rle(k)):
                row["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
            if objects.keypoints is not None:
                points = [[x - 0.5, y - 0.5, v] if v else [0, 0, 0] for x, y, v in objects.keypoints[k].tolist()]
                row["keypoints"] = [number for point in points for number in point]
                row["num_keypoints"] = sum(point[2] > 0 for point in points)
            annotations.append(row)
    names = list(categories.keypoints.names) if categories.keypoints else []
    content = {
        "images": [{"id": image.image_id, "height": image.size[0], "width": image.size[1]} for image in images],
        "categories": [
            {"id": class_id, "name": name} | ({"keypoints": names, "skeleton": []} if names else {})
            for class_id, name in zip(categories.ids, categories.names, strict=True)
        ],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return path


def by_pycocotools(truth: Path, results: Path, iou_type: str) -> dict[str, float]:
    """Its numbers by name; nan where it says -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO(str(truth))
        measured = COCOeval(data, data.loadRes(str(results)), iou_type)
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    names = KEYPOINT_METRICS if iou_type == "keypoints" else METRICS
    return dict(zip(names, np.where(measured.stats < 0, np.nan, measured.stats).tolist(), strict=True))

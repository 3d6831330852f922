"""A small COCO data set with masks and keypoints, for the tests of the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

BOX, TRIANGLE = [8, 8, 80, 48], [8, 8, 88, 8, 8, 56]  # the mask is the upper left half of the box
POINTS = [(20, 20), (70, 45)]  # joined by the skeleton


def write_masked_pictures(root: Path, count: int) -> dict[str, Any]:
    """Grey pictures of 64 x 96 (h x w), each with one object; the `data` of a configuration."""
    images, annotations = [], []
    for number in range(count):
        name = f"{number:03d}.png"
        (root / "images").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / "images" / name), np.full((64, 96, 3), 120, np.uint8))
        images.append({"id": number, "file_name": name, "height": 64, "width": 96})
        points = [value for point in POINTS for value in (*point, 2)]
        annotations.append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": 1,
                "bbox": BOX,
                "area": BOX[2] * BOX[3] / 2,
                "iscrowd": 0,
                "segmentation": [TRIANGLE],
                "keypoints": points,
                "num_keypoints": len(POINTS),
            }
        )
    category = {"id": 1, "name": "kite", "keypoints": ["left_tip", "right_tip"], "skeleton": [[1, 2]]}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (root / "objects.json").write_text(json.dumps(content))
    return {"name": "coco", "root": str(root), "train_annotations": "objects.json", "val_annotations": "objects.json"}

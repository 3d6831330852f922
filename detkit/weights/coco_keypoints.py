"""The keypoints of a person in COCO, which public detectors of keypoints know."""

from __future__ import annotations

from detkit.data.keypoint_names import COCO_SIGMAS, keypoint_categories

COCO_KEYPOINTS = keypoint_categories(
    tuple(COCO_SIGMAS),
    skeleton=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
        *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
)

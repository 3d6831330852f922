"""The keypoints of a person in COCO, which public detectors of keypoints know."""

from __future__ import annotations

from detkit.structures import KeypointCategories

_SIDES = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")

# https://cocodataset.org/#keypoints-eval has the spreads; names and skeleton are those of its annotations, from 0 here
COCO_KEYPOINTS = KeypointCategories(
    names=("nose", *(f"{side}_{part}" for part in _SIDES for side in ("left", "right"))),
    flip_pairs=tuple((2 * number + 1, 2 * number + 2) for number in range(len(_SIDES))),
    skeleton=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
        *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    ),
    sigmas=(0.026, *(spread for spread in (0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089) for _ in range(2))),
)

"""What the names of keypoints tell: which are left and right of each other, and how exactly COCO places them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from detkit.structures import KeypointCategories

# The spread of annotators on COCO's people, in parts of an object's size: https://cocodataset.org/#keypoints-eval
COCO_SIGMAS = {
    "nose": 0.026,
    "left_eye": 0.025,
    "right_eye": 0.025,
    "left_ear": 0.035,
    "right_ear": 0.035,
    "left_shoulder": 0.079,
    "right_shoulder": 0.079,
    "left_elbow": 0.072,
    "right_elbow": 0.072,
    "left_wrist": 0.062,
    "right_wrist": 0.062,
    "left_hip": 0.107,
    "right_hip": 0.107,
    "left_knee": 0.087,
    "right_knee": 0.087,
    "left_ankle": 0.089,
    "right_ankle": 0.089,
}
OTHER_SIGMA = 0.05  # of every keypoint where a name is none of COCO's
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
_WORD = re.compile("left|right")
_LETTER = re.compile("(?<![A-Za-z])[lrLR](?![a-z])|(?<=[a-z])[LR](?![A-Za-z])")  # of `l_eye`, `lEye`, `eye L`, `eyeR`


def keypoint_categories(
    names: Sequence[str],
    flip_pairs: Sequence[tuple[int, int]] | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
) -> KeypointCategories:
    """The keypoints of these names, with COCO's sigmas if all are names of COCO's, else `OTHER_SIGMA` for each.

    flip_pairs  None: those that the names tell
    """
    known = all(name in COCO_SIGMAS for name in names)
    sigmas = tuple(COCO_SIGMAS[name] if known else OTHER_SIGMA for name in names)
    pairs = pairs_of_names(names) if flip_pairs is None else flip_pairs
    return KeypointCategories(tuple(names), tuple(pairs), tuple(skeleton), sigmas)


def pairs_of_names(names: Sequence[str]) -> list[tuple[int, int]]:
    """The pairs that differ in left and right alone, also as the single letters l and r, in the order of the names."""
    index_of = {name.lower(): index for index, name in enumerate(names)}
    if len(index_of) < len(names):
        return []
    mirrored = [index_of.get(_mirrored(name)) for name in names]
    return [
        (index, other)
        for index, other in enumerate(mirrored)
        if other is not None and index < other and mirrored[other] == index
    ]


def _mirrored(name: str) -> str:
    """The name of the keypoint on the other side, in lower case; the name itself if it has no side."""
    lower = name.lower()
    if _WORD.search(lower):
        return _WORD.sub(lambda match: _OTHER_SIDE[match[0]], lower)
    return _LETTER.sub(lambda match: _OTHER_SIDE[match[0].lower()], name).lower()

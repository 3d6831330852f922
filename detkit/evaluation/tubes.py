"""Tubes, which are one object of a video over time: their overlap, video-mAP, and frame-mAP by the same rules.

Legend: F frames of a tube, D detections and G objects of one class, K classes, T IoU thresholds.
The published evaluation counts inclusive pixels (width = x2 - x1 + 1). The boxes here are continuous: x2 and y2 are one
larger than in its files. So their plain IoU is the published one, without a `+1` anywhere.
Source: Kalogeiton et al., arXiv 1705.01861, and its released evaluation.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from detkit.evaluation.evaluator import ProtocolResult, by_class
from detkit.evaluation.matching import IOU_THRESHOLDS
from detkit.ops.iou import box_iou
from detkit.structures import Categories, Detections, GroundTruth, ImageId
from detkit.structures.objects import check_array

FRAME_THRESHOLD = 0.5
VIDEO_THRESHOLDS = (0.2, *IOU_THRESHOLDS)


@dataclass(frozen=True, eq=False)
class Tube:
    """One object of a video, with at least one frame.

    frames  int64 `[F]`, rising; a frame is missing where the object is not in the picture
    boxes   float32 `[F, 4]` xyxy
    score   in [0, 1]; not read of an annotated tube
    """

    video: ImageId
    label: int
    frames: np.ndarray
    boxes: np.ndarray
    score: float = 1.0

    def __post_init__(self) -> None:
        check_array("Tube", "frames", self.frames, np.ndarray, "int64", (None,))
        check_array("Tube", "boxes", self.boxes, np.ndarray, "float32", (len(self.frames), 4))
        if not len(self.frames) or (np.diff(self.frames) <= 0).any():
            raise ValueError(
                f"Tube.frames: expected at least one, each later than the last, got {self.frames.tolist()}"
            )


def tube_iou(tube1: Tube, tube2: Tube) -> float:
    """The spatio-temporal IoU: the frames of both over the frames of either, times the mean IoU of the boxes in the
    frames of both. 0 without a common frame."""
    common, rows1, rows2 = np.intersect1d(tube1.frames, tube2.frames, assume_unique=True, return_indices=True)
    if not len(common):
        return 0.0
    boxes1, boxes2 = (torch.from_numpy(boxes).double() for boxes in (tube1.boxes[rows1], tube2.boxes[rows2]))
    spatial = float(box_iou(boxes1, boxes2, paired=True).mean())
    return spatial * len(common) / (len(tube1.frames) + len(tube2.frames) - len(common))


def video_map(ground_truth: Iterable[Tube], detections: Iterable[Tube], categories: Categories) -> ProtocolResult:
    """Video-mAP at 0.2, 0.5, 0.75 and over 0.5 to 0.95; the AP by class is that at 0.5. See `video_ap`."""
    per_class = video_ap(ground_truth, detections, len(categories), VIDEO_THRESHOLDS)
    means = dict(zip(VIDEO_THRESHOLDS, _mean_of_present(per_class), strict=True))
    metrics = {f"video-mAP@{threshold}": means[threshold] for threshold in (0.2, 0.5, 0.75)}
    metrics["video-mAP@0.5:0.95"] = float(np.mean([means[threshold] for threshold in IOU_THRESHOLDS]))
    rules = "area under the raw curve by trapezoids, spatio-temporal IoU >= threshold, inclusive pixels"
    half = per_class[:, VIDEO_THRESHOLDS.index(0.5)]
    return ProtocolResult(rules, "video-mAP@0.5", metrics, by_class(categories, half))


def frame_map(
    ground_truth: Sequence[GroundTruth], detections: Sequence[Detections], categories: Categories
) -> ProtocolResult:
    """Frame-mAP at IoU 0.5: every frame is a picture. `detections[i]` belong to `ground_truth[i]`. See `frame_ap`."""
    per_class = frame_ap(ground_truth, detections, len(categories))
    (mean,) = _mean_of_present(per_class[:, None])
    rules = f"area under the raw curve by trapezoids, IoU >= {FRAME_THRESHOLD} in each frame, inclusive pixels"
    headline = f"frame-mAP@{FRAME_THRESHOLD}"
    return ProtocolResult(rules, headline, {headline: mean}, by_class(categories, per_class))


def video_ap(
    ground_truth: Iterable[Tube], detections: Iterable[Tube], num_classes: int, thresholds: Sequence[float]
) -> np.ndarray:
    """AP of every class at each threshold of the spatio-temporal IoU, float64 `[K, T]`; nan for a class without a tube.

    The detections of a class are taken best score first over all videos (equal scores in the order given). Each is
    compared with the annotated tube of its class and video that has the largest IoU among those that no earlier
    detection has matched, and is right, and matches it, if that IoU is at least the threshold. So a second detection
    of a tube is compared with the rest of them. AP is that of `trapezoid_ap`.
    Raises ValueError for a label outside `[0, K)`.
    """
    annotated: dict[tuple[int, ImageId], list[Tube]] = {}
    num_objects = [0] * num_classes
    for tube in ground_truth:
        num_objects[_checked_label(tube, num_classes)] += 1
        annotated.setdefault((tube.label, tube.video), []).append(tube)
    candidates: list[list[_Candidate]] = [[] for _ in range(num_classes)]
    for tube in detections:
        peers = annotated.get((_checked_label(tube, num_classes), tube.video), [])
        overlaps = np.array([tube_iou(tube, peer) for peer in peers])
        candidates[tube.label].append(_Candidate(tube.score, tube.video, overlaps, np.zeros(len(peers), np.bool_)))
    return np.array(
        [[_ap(*row, threshold) for threshold in thresholds] for row in zip(candidates, num_objects, strict=True)]
    )


def frame_ap(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[Detections],
    num_classes: int,
    iou_threshold: float = FRAME_THRESHOLD,
) -> np.ndarray:
    """AP of every class, float64 `[K]`, by the rules of `video_ap` with a frame for a video and boxes for tubes.

    A detection whose best object is ignored, with at least the threshold, is left out, and the object stays free.
    """
    num_objects = np.zeros(num_classes, np.int64)
    candidates: list[list[_Candidate]] = [[] for _ in range(num_classes)]
    for frame, (image, image_detections) in enumerate(zip(ground_truth, detections, strict=True)):
        objects, labels = image.objects, image_detections.labels.numpy()
        num_objects += np.bincount(objects.labels[~objects.ignore], minlength=num_classes)
        # In float64, so that an IoU of exactly one half is one half.
        iou = box_iou(image_detections.boxes.double(), torch.from_numpy(objects.boxes).double()).numpy()
        for row, (label, score) in enumerate(zip(labels.tolist(), image_detections.scores.tolist(), strict=True)):
            peers = objects.labels == label
            candidates[label].append(_Candidate(score, frame, iou[row, peers], objects.ignore[peers]))
    return np.array([_ap(*row, iou_threshold) for row in zip(candidates, num_objects.tolist(), strict=True)])


def trapezoid_ap(true_positive: np.ndarray, num_objects: int) -> float:
    """Area under the precision-recall curve as it is, from precision 1 at recall 0, in straight lines between points.

    `true_positive` bool `[D]`, best score first. At least one object. This is not VOC's AP, which first makes the curve
    monotone.
    """
    num_true = np.cumsum(true_positive)
    precision = np.append(1.0, num_true / np.arange(1, len(num_true) + 1))
    recall = np.append(0.0, num_true / num_objects)
    return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


class _Candidate(NamedTuple):
    """A detection and its overlaps with the objects of its class in its video or frame.

    group     the video or frame
    overlaps  float64 `[G]`
    ignore    bool `[G]`
    """

    score: float
    group: Hashable
    overlaps: np.ndarray
    ignore: np.ndarray


def _ap(candidates: Sequence[_Candidate], num_objects: int, threshold: float) -> float:
    """AP of the detections of one class; nan without an object."""
    if not num_objects:
        return float("nan")
    free: dict[Hashable, np.ndarray] = {}
    true_positive = []
    for candidate in sorted(candidates, key=lambda each: -each.score):
        still_free = free.setdefault(candidate.group, np.ones(len(candidate.overlaps), np.bool_))
        overlaps = np.where(still_free, candidate.overlaps, -1.0)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        matches = best >= 0 and bool(overlaps[best] >= threshold)
        if matches and candidate.ignore[best]:
            continue
        if matches:
            still_free[best] = False
        true_positive.append(matches)
    return trapezoid_ap(np.array(true_positive, np.bool_), num_objects)


def _checked_label(tube: Tube, num_classes: int) -> int:
    if not 0 <= tube.label < num_classes:
        raise ValueError(f"video {tube.video!r}: expected labels of tubes in [0, {num_classes}), got {tube.label}")
    return tube.label


def _mean_of_present(per_class: np.ndarray) -> list[float]:
    """The mean of `[K, T]` over the classes that are not nan, of each column; nan without any."""
    present = per_class[~np.isnan(per_class).any(axis=1)]
    means = present.mean(axis=0) if len(present) else np.full(per_class.shape[1], np.nan)
    return [float(mean) for mean in means]

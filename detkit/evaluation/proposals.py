"""How well proposals cover the objects: recall, and the mean average best overlap of the selective search paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detkit.ops.iou import box_iou
from detkit.structures import GroundTruth


@dataclass(frozen=True)
class ProposalQuality:
    """
    boxes   proposals of an image, the mean
    recall  part of the objects that a proposal overlaps by an IoU of at least .5
    mabo    the best overlap of an object, averaged over the objects of a class, then over the classes that have any
    abo     of each class, nan where it has no object
    """

    boxes: float
    recall: float
    mabo: float
    abo: tuple[float, ...]


def proposal_quality(images: Iterable[tuple[GroundTruth, np.ndarray]], class_names: Sequence[str]) -> ProposalQuality:
    """`images`: ground truth and proposals float32 `[N, 4]` xyxy of each. Ignored objects do not count."""
    best: list[list[float]] = [[] for _ in class_names]
    counts = []
    for truth, boxes in images:
        counts.append(len(boxes))
        objects, labels = truth.boxes[~truth.ignore], truth.labels[~truth.ignore]
        overlap = torch.zeros(len(objects))
        if len(boxes) and len(objects):
            overlap = box_iou(torch.from_numpy(objects), torch.from_numpy(boxes)).amax(dim=1)
        for label, value in zip(labels.tolist(), overlap.tolist(), strict=True):
            best[label].append(value)
    every = np.array([value for of_class in best for value in of_class])
    if not len(every):
        return ProposalQuality(float(np.mean(counts or [0])), np.nan, np.nan, (np.nan,) * len(class_names))
    abo = [float(np.mean(of_class)) if of_class else np.nan for of_class in best]
    return ProposalQuality(float(np.mean(counts)), float((every >= 0.5).mean()), float(np.nanmean(abo)), tuple(abo))

"""How well proposals cover the objects: recall, and the mean average best overlap of the selective search paper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from detkit.ops.iou import box_iou
from detkit.structures import Categories, GroundTruth


@dataclass(frozen=True)
class ProposalQuality:
    """Numbers in [0, 1] but for `boxes`; nan where there is no object.

    boxes   mean number of proposals of an image
    recall  part of the objects that a proposal overlaps by an IoU of at least .5
    mabo    mean of `abo` over the classes that have an object
    abo     average best overlap: the largest IoU of an object with a proposal, averaged over the objects of each class
    """

    boxes: float
    recall: float
    mabo: float
    abo: tuple[float, ...]


def proposal_quality(images: Iterable[tuple[GroundTruth, np.ndarray]], categories: Categories) -> ProposalQuality:
    """Compares the proposals of every image, float32 `[N, 4]` xyxy, with its objects that are not ignored."""
    overlaps_by_class: list[list[float]] = [[] for _ in categories.names]
    counts = []
    for ground_truth, proposals in images:
        counts.append(len(proposals))
        objects = ground_truth.objects.take(~ground_truth.objects.ignore)
        overlaps = torch.zeros(len(objects))
        if len(proposals) and len(objects):
            overlaps = box_iou(torch.from_numpy(objects.boxes), torch.from_numpy(proposals)).amax(dim=1)
        for label, overlap in zip(objects.labels.tolist(), overlaps.tolist(), strict=True):
            overlaps_by_class[label].append(overlap)
    all_overlaps = np.array([overlap for overlaps in overlaps_by_class for overlap in overlaps])
    num_proposals = float(np.mean(counts or [0]))
    if not len(all_overlaps):
        return ProposalQuality(num_proposals, np.nan, np.nan, (np.nan,) * len(categories))
    abo = [float(np.mean(overlaps)) if overlaps else np.nan for overlaps in overlaps_by_class]
    return ProposalQuality(num_proposals, float((all_overlaps >= 0.5).mean()), float(np.nanmean(abo)), tuple(abo))

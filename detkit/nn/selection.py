"""Candidates of a batch -> a fixed number of detections an image: what every detector does last.

Legend: B images, P candidates of all images together, K classes, D rows of an image, T frames of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.config import Config, UserError
from detkit.nn.outputs import register_outputs
from detkit.ops.boxes import clip_to_windows, valid_boxes
from detkit.ops.keypoints import keypoints_of_heatmaps
from detkit.ops.masks import paste_masks
from detkit.ops.nms import class_aware_merge, class_aware_nms, diou_nms, soft_nms
from detkit.ops.rows import ranks_in_groups, to_rows
from detkit.ops.suppress import suppress
from detkit.structures import Categories, Detections, EncodedMasks, ImageInfo, Objects, Size

KEYPOINT_SCORES = "keypoint_scores"  # column of detections, float32 [N, P]: the logit of each keypoint at its place
MIN_SIZE = 1e-2  # input px; smaller detections are degenerate


class SelectionConfig(Config):
    """Which candidates become detections. Defaults: torchvision's Faster R-CNN."""

    at_test: ClassVar[tuple[str, ...]] = ("*",)

    score_threshold: float = Field(0.05, ge=0, le=1)  # candidates must score more
    top_k_per_class: int | None = Field(None, ge=1)  # candidates of a class that enter the suppression; null: all
    # Of the boxes of a class. nms: greedily by IoU; diou: by DIoU, which spares boxes with other centres; soft_linear,
    # soft_gaussian: scores of overlapping boxes are lowered (Soft-NMS); merge: overlapping boxes are joined (OverFeat)
    suppression: Literal["nms", "diou", "soft_linear", "soft_gaussian", "merge"] = "nms"
    nms_threshold: float | None = Field(0.5, ge=0, le=1)  # overlap above which two of a class are one; null: never
    soft_sigma: float = Field(0.5, gt=0)  # of soft_gaussian, which has no threshold: scores *= exp(-IoU^2 / sigma)
    max_detections: int = Field(100, ge=1)  # of an image


@register_outputs
@dataclass(frozen=True, eq=False)
class DetectionRows:
    """Detections of a batch in input pixels, best score first; the rows of an image beyond its count are zero.

    boxes     float32 `[B, D, 4]` xyxy
    scores    float32 `[B, D]`
    labels    int64 `[B, D]`
    counts    int64 `[B]`
    masks     float32 `[B, D, S, S]`: the probability of each cell of the box; None: the detector has no masks
    heatmaps  float32 `[B, D, P, S, S]`: logits of each keypoint in the cells of the box; None: it has no keypoints
    tubes     float32 `[B, D, T, 4]` xyxy: the boxes in each frame of the clip; None: it has only that of one frame
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    masks: Tensor | None = None
    heatmaps: Tensor | None = None
    tubes: Tensor | None = None

    def to_detections(self, infos: Sequence[ImageInfo], categories: Categories) -> list[Detections]:
        """The detections of each image in its original pixels, on the CPU."""
        counts = self.counts.tolist()
        boxes, scores, labels = self.boxes.cpu(), self.scores.cpu(), self.labels.cpu()
        result = []
        for i, (count, info) in enumerate(zip(counts, infos, strict=True)):
            original = to_original(boxes[i, :count], info)
            objects = Objects(original, labels[i, :count], scores=scores[i, :count])
            if self.masks is not None:
                objects = replace(objects, masks=_encoded(self.masks[i, :count].cpu(), original, info.orig_size))
            if self.heatmaps is not None:
                places, peaks = keypoints_of_heatmaps(self.heatmaps[i, :count].cpu(), boxes[i, :count])
                keypoints = torch.cat([points_to_original(places, info), torch.full_like(peaks, 2.0)[..., None]], dim=2)
                objects = replace(objects, keypoints=keypoints, extra={KEYPOINT_SCORES: peaks})
            if self.tubes is not None:
                objects = replace(objects, tubes=to_original(self.tubes[i, :count].cpu(), info))
            result.append(Detections(objects, categories))
        return result


def _encoded(masks: Tensor, boxes: Tensor, size: Size) -> EncodedMasks:
    """One after the other: their pixels at once could take the memory of as many pictures."""
    rows = [slice(row, row + 1) for row in range(len(masks))]
    encoded = [paste_masks(masks[row], boxes[row], size).encode(size) for row in rows]
    return EncodedMasks.cat(encoded) if encoded else EncodedMasks.of([], [])


def select_detections(
    boxes: Tensor, scores: Tensor, images: Tensor | None, windows: Tensor, config: SelectionConfig
) -> DetectionRows:
    """Takes scores above the threshold and the best of each class, clips, drops degenerate boxes, suppresses within
    each class, and cuts.

    boxes    `[P, 4]` or, with a box for each class, `[P, K, 4]`, xyxy in input px
    scores   `[P, K]`: every candidate may be of several classes
    images   int64 `[P]`: the image of each candidate. None: every image has N, boxes are `[B, N, 4]` or `[B, N, K, 4]`
             and scores `[B, N, K]`
    windows  `[B, 4]` xyxy in input px: where each picture lies on its canvas
    """
    if torch.compiler.is_compiling():
        return _select_densely(boxes, scores, windows, config)
    num_images, num_classes = windows.shape[0], scores.shape[-1]
    boxes, scores, group = _candidates(boxes, scores, images, num_images, config)
    boxes = clip_to_windows(boxes, windows[group // num_classes])
    rows = torch.nonzero(valid_boxes(boxes, MIN_SIZE)).squeeze(1)
    boxes, scores, group = boxes[rows], scores[rows], group[rows]
    boxes, scores, group = _suppressed(boxes, scores, group, config)
    columns = (boxes.float(), scores.float(), group % num_classes)
    (boxes, scores, labels), counts = to_rows(columns, group // num_classes, num_images, config.max_detections)
    return DetectionRows(boxes, scores, labels, counts)


def _candidates(
    boxes: Tensor, scores: Tensor, images: Tensor | None, num_images: int, config: SelectionConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes `[M, 4]` and scores `[M]` above the threshold and among the best of their class in their image, and
    int64 `[M]`, image * K + class. Arguments as those of `select_detections`."""
    top_k, num_classes, likely = config.top_k_per_class, scores.shape[-1], scores > config.score_threshold
    if images is None:
        images = images_of_rows(num_images, scores.shape[1], scores.device)
        if top_k is not None:  # quicker than below, where images have different numbers of candidates
            if int(likely.sum(dim=1).max()) > top_k:
                likely = likely & _best_of_classes(scores, top_k)
            top_k = None
        boxes, scores, likely = boxes.flatten(0, 1), scores.flatten(0, 1), likely.flatten(0, 1)
    candidate, label = torch.nonzero(likely, as_tuple=True)
    if top_k is not None:
        order = scores[candidate, label].argsort(descending=True, stable=True)
        ranks = ranks_in_groups((images[candidate] * num_classes + label)[order], num_images * num_classes)
        rows = order[torch.nonzero(ranks < top_k).squeeze(1)]
        candidate, label = candidate[rows], label[rows]
    boxes = boxes[candidate] if boxes.ndim == 2 else boxes[candidate, label]
    return boxes, scores[candidate, label], images[candidate] * num_classes + label


def _suppressed(boxes: Tensor, scores: Tensor, group: Tensor, config: SelectionConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes `[M, 4]`, scores `[M]` and groups `[M]` that are left, best score first."""
    threshold = config.nms_threshold
    if threshold is None:
        rows = scores.argsort(descending=True, stable=True)
    elif config.suppression == "merge":
        return class_aware_merge(boxes, scores, group, threshold)
    elif config.suppression == "nms":
        rows = class_aware_nms(boxes, scores, group, threshold)
    elif config.suppression == "diou":
        rows = diou_nms(boxes, scores, group, threshold)
    else:
        rows, lowered = soft_nms(
            boxes,
            scores,
            group,
            method="linear" if config.suppression == "soft_linear" else "gaussian",
            iou_threshold=threshold,
            sigma=config.soft_sigma,
            score_threshold=config.score_threshold,
        )
        return boxes[rows], lowered, group[rows]
    return boxes[rows], scores[rows], group[rows]


def _best_of_classes(scores: Tensor, top_k: int) -> Tensor:
    """bool `[B, N, K]`: the `top_k` best candidates of each class."""
    num_candidates = scores.shape[1]
    if torch.compiler.is_compiling():  # a program that is exported cannot ask whether there are so many
        scores = F.pad(scores, (0, 0, 0, top_k), value=-torch.inf)
    else:
        top_k = min(top_k, num_candidates)
    best = scores.topk(top_k, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)[:, :num_candidates]


def _select_densely(boxes: Tensor, scores: Tensor, windows: Tensor, config: SelectionConfig) -> DetectionRows:
    """`select_detections` for a program that is exported: no shape depends on how many candidates are likely.

    Every image has N candidates, so those with the image of each are `[B * N, ...]`.
    """
    if config.nms_threshold is not None and config.suppression != "nms":
        raise UserError(f"selection.suppression: {config.suppression} is a loop that cannot be exported; nms can be")
    num_images, num_classes = windows.shape[0], scores.shape[-1]
    if scores.ndim == 2:
        boxes, scores = (value.reshape(num_images, -1, *value.shape[1:]) for value in (boxes, scores))
    boxes, scores = boxes.float(), scores.float()
    if boxes.ndim == 3:
        boxes = boxes[:, :, None]  # [B, N, 1 or K, 4]
    boxes = clip_to_windows(boxes, windows[:, None, None])
    likely = (scores > config.score_threshold) & valid_boxes(boxes, MIN_SIZE)
    if config.top_k_per_class is not None:
        likely = likely & _best_of_classes(scores, config.top_k_per_class)
    scores = torch.where(likely, scores, -torch.inf)
    if config.nms_threshold is not None:
        # a group of boxes is an image, or, with a box for each class, a class of an image
        groups = boxes.transpose(1, 2).flatten(0, 1)
        by_class = scores.transpose(1, 2).reshape(groups.shape[0], -1, groups.shape[1])
        stays = suppress(groups, by_class, config.nms_threshold)
        scores = torch.where(stays.view(num_images, num_classes, -1).transpose(1, 2), scores, -torch.inf)
    best, rows, filled = best_rows(scores.flatten(1), config.max_detections)
    boxes = boxes.expand(-1, -1, num_classes, -1).flatten(1, 2)
    boxes = torch.where(filled[..., None], boxes.gather(1, rows[..., None].expand(-1, -1, 4)), 0.0)
    return DetectionRows(boxes, torch.where(filled, best, 0.0), rows % num_classes, filled.sum(dim=1))


def best_rows(scores: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best of each image, for a program that is exported.

    scores  `[B, M]`; -inf: none
    Returns the scores and int64 indices `[B, limit]`, best first, and bool `[B, limit]`: whether there is one; the
    others have the index 0.
    """
    best, rows = F.pad(scores, (0, limit), value=-torch.inf).topk(limit, dim=1)
    filled = best > -torch.inf
    return best, torch.where(filled, rows, 0), filled


def best_of_levels(logits: Sequence[Tensor], top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest predictions of each level: their logits `[B, M]`, indices `[B, M]` into all levels, levels `[M]`.

    logits  of each level `[B, N_l]`, one for each prediction
    """
    values, indices, levels, start = [], [], [], 0
    for number, level in enumerate(logits):
        best = level.topk(min(top_k, level.shape[1]), dim=1)
        values.append(best.values)
        indices.append(best.indices + start)
        levels.append(torch.full_like(best.indices[0], number))
        start += level.shape[1]
    return torch.cat(values, dim=1), torch.cat(indices, dim=1), torch.cat(levels)


def best_pairs_of_levels(
    scores: Sequence[Tensor], threshold: float, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The likeliest pairs of a prediction and a class on each level of each image.

    scores     of each level `[B, N_l, K]`; logits are as good
    threshold  pairs must score more. A program that is being compiled leaves this to `select_detections`
    top_k      pairs of a level and image
    Returns the images, the predictions, counted over all levels, and the labels of P pairs, int64 `[P]`, and their
    scores `[P]`.
    """
    num_images, _, num_classes = scores[0].shape
    if torch.compiler.is_compiling():
        best, rows, _ = best_of_levels([level.flatten(1) for level in scores], top_k)
        every = images_of_rows(num_images, rows.shape[1], rows.device)
        return every, rows.flatten() // num_classes, rows.flatten() % num_classes, best.flatten()
    images, pairs, values = [], [], []
    for image in range(num_images):
        start = 0
        for level in scores:
            flat = level[image].flatten()
            likely = torch.nonzero(flat > threshold).squeeze(1)  # few: to look for the best among all takes longer
            value, order = torch.topk(flat[likely], min(top_k, len(likely)))
            images.append(torch.full_like(order, image))
            pairs.append(likely[order] + start)
            values.append(value)
            start += len(flat)
    pair = torch.cat(pairs)
    return torch.cat(images), pair // num_classes, pair % num_classes, torch.cat(values)


def scores_of_pairs(labels: Tensor, scores: Tensor, num_classes: int) -> Tensor:
    """`[P, K]` for `select_detections`: the score `[P]` of each candidate in the column of its label, else 0."""
    return scores.new_zeros(scores.shape[0], num_classes).scatter(1, labels[:, None], scores[:, None])


def images_of_rows(num_images: int, rows: int, device: torch.device) -> Tensor:
    """int64 `[num_images * rows]`: the image of each row where every image has as many."""
    return torch.arange(num_images, device=device)[:, None].expand(num_images, rows).flatten()


def to_original(boxes: Tensor, info: ImageInfo) -> Tensor:
    """Boxes `[..., 4]` xyxy from input pixels to those of the picture before the resize, cut off at its borders."""
    boxes = points_to_original(boxes.reshape(*boxes.shape[:-1], 2, 2), info).flatten(-2)
    height, width = info.orig_size
    return clip_to_windows(boxes, boxes.new_tensor([0, 0, width, height]))


def points_to_original(points: Tensor, info: ImageInfo) -> Tensor:
    """Points `[..., 2]` x, y from input pixels to those of the picture before the resize."""
    return (points - points.new_tensor(info.offset)) / points.new_tensor(info.scale)

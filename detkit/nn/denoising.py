"""Queries that are objects with noise, which the decoder learns to undo, in training only.

Sources: DN-DETR (Li et al., arXiv 2203.01305); with negatives DINO (Zhang et al., arXiv 2203.03605, section 3.3).

Legend: B images, M objects of the batch, D denoising queries of an image, Q other queries, L decoder layers, K classes.
Boxes are cxcywh in parts of the picture's sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from detkit.config import Config
from detkit.nn.assign.hungarian import Pairs, SetTargets
from detkit.nn.outputs import register_outputs
from detkit.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh


class DenoisingConfig(Config):
    """Defaults: RT-DETR. Each group has a query for each object, and with `negatives` a second one of more noise."""

    queries: int = Field(100, ge=1)  # about how many of an image answer for objects: groups times the most objects
    groups: int | None = Field(None, ge=1)  # null: as many as `queries` allow, at least 1
    label_noise: float = Field(0.25, ge=0, le=1)  # probability that a label is replaced by that of a random class
    box_noise: float = Field(1.0, ge=0)  # farthest that a corner moves, in halves of the sides; negatives: twice as far
    moved: Literal["corners", "center"] = "corners"  # center: it moves as far as a corner would, and each side by at
    # most `box_noise` of itself (DN-DETR)
    negatives: bool = True  # queries of more noise that are trained as "no object"
    swap_corners: bool = False  # corners that noise moves past each other change places (D-FINE); else the side is 0
    empty: float = Field(0.0, ge=0, le=1)  # coordinates of the queries of an image with fewer objects than the most


@register_outputs
@dataclass(frozen=True, eq=False)
class NoisedQueries:
    """
    labels       int64 `[B, D]`; K: no object
    boxes        `[B, D, 4]`
    images       int64 `[P]`: of each query that answers for an object
    predictions  int64 `[P]`: which of the D queries of its image it is
    objects      int64 `[P]`: rows of `SetTargets`
    groups       of equal size, one after the other
    """

    labels: Tensor
    boxes: Tensor
    images: Tensor
    predictions: Tensor
    objects: Tensor
    groups: int

    def pairs(self, layers: int) -> Pairs:
        return Pairs(self.images, self.predictions.expand(layers, -1), self.objects.expand(layers, -1))

    def mask_with(self, queries: int) -> Tensor:
        """bool `[D + Q, D + Q]`, True where a query (row) may attend to another: a denoising query to its own group and
        to the other queries, these to each other alone."""
        count, device = self.labels.shape[1], self.labels.device
        group = torch.arange(count, device=device) // (count // self.groups)
        mask = torch.ones(count + queries, count + queries, dtype=torch.bool, device=device)
        mask[:count, :count] = group[:, None] == group
        mask[count:, :count] = False
        return mask


def noised_queries(config: DenoisingConfig, objects: SetTargets, num_classes: int) -> NoisedQueries:
    """Each group has as many slots as the image with the most objects has, at least one, and with negatives twice that:
    first all that answer for objects, then the negatives."""
    slots = max(1, *objects.counts)
    groups = config.groups or max(1, config.queries // slots)
    halves = 2 if config.negatives else 1
    device = objects.labels.device
    images, numbers = (
        torch.tensor(column, dtype=torch.int64, device=device)
        for column in (
            [image for image, count in enumerate(objects.counts) for _ in range(count)],
            [number for count in objects.counts for number in range(count)],
        )
    )
    labels = torch.full((len(objects.counts), slots), num_classes, device=device)
    boxes = torch.zeros(len(objects.counts), slots, 4, device=device)
    labels[images, numbers], boxes[images, numbers] = objects.labels, objects.boxes.to(boxes.dtype)
    labels, boxes = labels.repeat(1, groups * halves), boxes.repeat(1, groups * halves, 1)
    starts = torch.arange(groups, device=device) * slots * halves
    flipped = (torch.rand_like(boxes[..., 0]) < config.label_noise) & (labels < num_classes)
    negative = torch.arange(labels.shape[1], device=device) // slots % halves == 1
    noised = _noised(config, boxes, negative).where(labels[..., None] < num_classes, config.empty)
    return NoisedQueries(
        torch.randint_like(labels, num_classes).where(flipped, labels),
        noised,
        images.repeat(groups),
        (starts[:, None] + numbers).flatten(),
        torch.arange(len(images), device=device).repeat(groups),
        groups,
    )


def _noised(config: DenoisingConfig, boxes: Tensor, negative: Tensor) -> Tensor:
    """Boxes `[B, D, 4]`, moved; `negative` is bool `[D]`."""
    sides = boxes[..., 2:]
    if config.moved == "center":
        reach = torch.cat([sides / 2, sides], dim=-1) * config.box_noise
        return (boxes + (2 * torch.rand_like(boxes) - 1) * reach).clamp(0, 1)
    sign = torch.randint_like(boxes, 2) * 2 - 1
    part = sign * (torch.rand_like(boxes) + negative[:, None])
    reach = (sides / 2).repeat(1, 1, 2) * config.box_noise
    noised = xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + part * reach).clamp(0, 1))
    return noised.abs() if config.swap_corners else noised

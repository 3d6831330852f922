"""The region head of Fast R-CNN (Girshick, arXiv 1504.08083): pool each proposal from the shared map, classify, refine.

Legend: B images, P proposals of the batch together, N boxes of one image, K classes. Index 0 of the classifier is
background and private to this file; label c of the data is index c + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.assign.iou_matcher import match_by_iou, sample_matches
from detkit.nn.heads.detections import select_detections
from detkit.ops.coders import BoxCoder
from detkit.ops.roi import multilevel_roi_align, roi_pool
from detkit.structures import Detections, ImageInfo, Target


class RoIConfig(Config):
    """Defaults: torchvision's `fasterrcnn_resnet50_fpn`."""

    pool: Literal["align", "pool"] = "align"  # RoIAlign over all levels, or the paper's RoIPool on the only one
    output_size: int = Field(7, ge=1)  # bins a side
    sampling_ratio: int = Field(2, ge=0)  # RoIAlign samples a bin and axis; 0: as many as the bin has pixels
    aligned: bool = False  # RoIAlign with the half pixel shift
    hidden: tuple[int, ...] = (1024, 1024)  # fully connected layers
    dropout: float = Field(0.0, ge=0, lt=1)  # after each hidden layer
    fg_threshold: float = Field(0.5, ge=0, le=1)  # IoU
    bg_threshold: tuple[float, float] = (0.0, 0.5)  # IoU [low, high)
    batch_size_per_image: int = Field(512, ge=1)  # sampled proposals
    positive_fraction: float = Field(0.25, ge=0, le=1)
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # 1 / std of the deltas
    smooth_l1_beta: float = Field(1 / 9, ge=0)
    score_threshold: float = Field(0.05, ge=0, le=1)
    nms_threshold: float = Field(0.5, ge=0, le=1)
    detections_per_image: int = Field(100, ge=1)


@dataclass(frozen=True, eq=False)
class RoISamples:
    """What each sampled proposal should become.

    labels  int64 `[P]`, 0 is background
    boxes   float32 `[P, 4]`, the object's box; of background the proposal itself
    """

    labels: Tensor
    boxes: Tensor


@dataclass(frozen=True, eq=False)
class RoIOutputs:
    """
    proposals  B x `[N, 4]` xyxy in input px, P in all
    logits     `[P, K + 1]`
    deltas     `[P, K + 1, 4]`
    samples    when training
    """

    proposals: tuple[Tensor, ...]
    logits: Tensor
    deltas: Tensor
    samples: RoISamples | None


class RoIHead(nn.Module):
    """Pools regions from the levels of `strides`, then hidden layers, then a classifier and per-class box deltas."""

    def __init__(self, config: RoIConfig, in_channels: int, strides: Sequence[int], class_names: Sequence[str]) -> None:
        super().__init__()
        if config.pool == "pool" and len(strides) != 1:
            raise ValueError(f"RoIPool reads one level, got {len(strides)}; use pool: align with a pyramid")
        self.config = config
        self.strides = tuple(strides)
        self.class_names = tuple(class_names)
        self.coder = BoxCoder(weights=config.box_weights)
        widths = [in_channels * config.output_size**2, *config.hidden]
        hidden = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.hidden = nn.ModuleList(hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(widths[-1], len(class_names) + 1)
        self.regressor = nn.Linear(widths[-1], 4 * (len(class_names) + 1))
        for layer in hidden:
            nn.init.kaiming_uniform_(layer.weight, a=1)  # as Detectron2; torch's default fades layer by layer
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.classifier, 0.01), (self.regressor, 0.001)):  # Fast R-CNN section 2.3
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(
        self, features: list[Tensor], proposals: Sequence[Tensor], samples: RoISamples | None = None
    ) -> RoIOutputs:
        hidden = self._pool(features[: len(self.strides)], proposals).flatten(1)
        for layer in self.hidden:
            hidden = self.dropout(F.relu(layer(hidden)))
        return RoIOutputs(
            tuple(proposals), self.classifier(hidden), self.regressor(hidden).unflatten(1, (-1, 4)), samples
        )

    def _pool(self, features: list[Tensor], proposals: Sequence[Tensor]) -> Tensor:
        config, boxes = self.config, list(proposals)
        size = (config.output_size, config.output_size)
        if config.pool == "pool":
            # the kernel, as Caffe's, takes corners that are the first and last pixel inside
            inside = [box - box.new_tensor([0, 0, 1, 1]) for box in boxes]
            return roi_pool(features[0], inside, size, 1 / self.strides[0])
        return multilevel_roi_align(
            features, boxes, self.strides, size, sampling_ratio=config.sampling_ratio, aligned=config.aligned
        )

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> tuple[list[Tensor], RoISamples]:
        """Joins the objects to the proposals and draws a training batch of each image."""
        config, chosen, labels, boxes = self.config, [], [], []
        for candidates, target in zip(proposals, targets, strict=True):
            objects, object_labels = target.objects()
            candidates = torch.cat([candidates, objects])
            matches = match_by_iou(
                candidates,
                objects,
                fg_threshold=config.fg_threshold,
                bg_threshold=config.bg_threshold,
                best_for_each_object=False,
            )
            positive, background = sample_matches(matches, config.batch_size_per_image, config.positive_fraction)
            match = matches[positive]
            chosen.append(candidates[torch.cat([positive, background])])
            labels += [object_labels[match] + 1, torch.zeros_like(background)]
            boxes += [objects[match], candidates[background]]
        return chosen, RoISamples(torch.cat(labels), torch.cat(boxes))

    def criterion(self, outputs: RoIOutputs) -> dict[str, Tensor]:
        """Classification and box loss (eq. 1), both averaged over all sampled proposals of the batch."""
        if outputs.samples is None:
            raise ValueError("no sampled proposals: the outputs were computed in evaluation mode or without targets")
        labels = outputs.samples.labels
        positive = torch.nonzero(labels > 0).squeeze(1)
        wanted = self.coder.encode(outputs.samples.boxes[positive], torch.cat(outputs.proposals)[positive])
        deltas = outputs.deltas[positive, labels[positive]].float()
        num_sampled = max(1, len(labels))
        box = F.smooth_l1_loss(deltas, wanted, beta=self.config.smooth_l1_beta, reduction="sum")
        return {
            "roi_class": F.cross_entropy(outputs.logits.float(), labels, reduction="sum") / num_sampled,
            "roi_box": box / num_sampled,
        }

    @torch.no_grad()
    def postprocess(self, outputs: RoIOutputs, infos: Sequence[ImageInfo]) -> list[Detections]:
        counts = [len(boxes) for boxes in outputs.proposals]
        scores = torch.split(outputs.logits.float().softmax(dim=1)[:, 1:], counts)
        boxes = torch.split(self.coder.decode(outputs.deltas.float(), torch.cat(outputs.proposals))[:, 1:], counts)
        return [
            select_detections(
                *candidates,
                self.class_names,
                score_threshold=self.config.score_threshold,
                nms_threshold=self.config.nms_threshold,
                max_detections=self.config.detections_per_image,
            )
            for candidates in zip(boxes, scores, infos, strict=True)
        ]

"""What happens to a region once it has features: it is classified and refined, whoever made the features.

Sliding windows, R-CNN, Fast and Faster R-CNN differ in where regions come from and how their features are made; the
samples, the loss (Fast R-CNN, arXiv 1504.08083, eq. 1) and the way to detections are these.

Legend: B images, P regions of the batch together, N boxes of one image, K classes. Index 0 of the classifier is
background and private to this room; label c of the data is index c + 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.assign.iou_matcher import match_by_iou, sample_matches
from detkit.nn.heads.detections import select_detections
from detkit.ops.coders import BoxCoder
from detkit.structures import Detections, ImageInfo, Target


class RegionConfig(Config):
    hidden: tuple[int, ...] = (1024, 1024)  # fully connected layers
    ranks: tuple[int, ...] = ()  # of those layers after a truncated SVD (`tools/compress.py`); empty: they are whole
    dropout: float = Field(0.0, ge=0, lt=1)  # after each hidden layer
    fg_threshold: float = Field(0.5, ge=0, le=1)  # IoU
    bg_threshold: tuple[float, float] = (0.0, 0.5)  # IoU [low, high)
    batch_size_per_image: int = Field(512, ge=1)  # sampled regions
    positive_fraction: float = Field(0.25, ge=0, le=1)
    score_threshold: float = Field(0.05, ge=0, le=1)
    top_k_per_class: int | None = Field(None, ge=1)  # candidates of a class that enter the suppression; null: all
    nms_threshold: float = Field(0.5, ge=0, le=1)
    detections_per_image: int = Field(100, ge=1)

    @model_validator(mode="after")
    def _a_rank_for_each_layer(self) -> RegionConfig:
        if self.ranks and (len(self.ranks) != len(self.hidden) or min(self.ranks) < 1):
            raise ValueError(f"ranks: expected one of at least 1 for each of the {len(self.hidden)} layers of `hidden`")
        return self


class RefiningConfig(RegionConfig):
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # 1 / std of the deltas
    smooth_l1_beta: float = Field(1 / 9, ge=0)


@dataclass(frozen=True, eq=False)
class RoISamples:
    """What each sampled region should become.

    labels  int64 `[P]`, 0 is background
    boxes   float32 `[P, 4]`, the object's box; of background the region itself
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


class RegionHead(nn.Module):
    """Hidden layers on the features of a region, then a classifier.

    in_features  numbers that describe a region
    deltas       numbers that a regressor gives for each region; 0: there is none
    """

    merge = False  # detections above the overlap are joined, not suppressed

    def __init__(self, config: RegionConfig, in_features: int, class_names: Sequence[str], deltas: int = 0) -> None:
        super().__init__()
        self.config = config
        self.class_names = tuple(class_names)
        widths = [in_features, *config.hidden]
        ranks = config.ranks or (None,) * len(config.hidden)
        self.hidden = nn.ModuleList(_layer(a, b, rank) for (a, b), rank in zip(pairwise(widths), ranks, strict=True))
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(widths[-1], len(class_names) + 1)
        self.regressor = nn.Linear(widths[-1], deltas) if deltas else None
        for layer in self.hidden.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)  # as Detectron2; torch's default fades layer by layer
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for last, std in ((self.classifier, 0.01), (self.regressor, 0.001)):  # Fast R-CNN section 2.3
            if last is not None:
                nn.init.normal_(last.weight, std=std)
                nn.init.zeros_(last.bias)

    def describe(self, features: Tensor) -> Tensor:
        """The last hidden layer `[P, F]` of regions with features `[P, ...]`."""
        hidden = features.flatten(1)
        for layer in self.hidden:
            hidden = self.dropout(F.relu(layer(hidden)))
        return hidden

    def match(self, candidates: Tensor, objects: Tensor) -> Tensor:
        """int64 `[N]`: the object that each candidate should become, or what `match_by_iou` says of the others."""
        config = self.config
        return match_by_iou(
            candidates,
            objects,
            fg_threshold=config.fg_threshold,
            bg_threshold=config.bg_threshold,
            best_for_each_object=False,
        )

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> tuple[list[Tensor], RoISamples]:
        """Joins the objects to the proposals and draws a training batch of each image."""
        config, chosen, labels, boxes = self.config, [], [], []
        for candidates, target in zip(proposals, targets, strict=True):
            objects, object_labels = target.objects()
            candidates = torch.cat([candidates, objects])
            matches = self.match(candidates, objects)
            positive, background = sample_matches(matches, config.batch_size_per_image, config.positive_fraction)
            match = matches[positive]
            chosen.append(candidates[torch.cat([positive, background])])
            labels += [object_labels[match] + 1, torch.zeros_like(background)]
            boxes += [objects[match], candidates[background]]
        return chosen, RoISamples(torch.cat(labels), torch.cat(boxes))

    @abstractmethod
    def criterion(self, outputs: Any) -> dict[str, Tensor]: ...

    @abstractmethod
    def postprocess(self, outputs: Any, infos: Sequence[ImageInfo]) -> list[Detections]: ...

    def detect(
        self, boxes: Tensor, scores: Tensor, counts: Sequence[int], infos: Sequence[ImageInfo]
    ) -> list[Detections]:
        """Detections from boxes `[P, K, 4]` or `[P, 4]` and scores `[P, K]`, `counts[i]` of them on image i."""
        config = self.config
        of_image = zip(torch.split(boxes, list(counts)), torch.split(scores, list(counts)), infos, strict=True)
        return [
            select_detections(
                *candidates,
                self.class_names,
                score_threshold=config.score_threshold,
                top_k_per_class=config.top_k_per_class,
                nms_threshold=config.nms_threshold,
                merge=self.merge,
                max_detections=config.detections_per_image,
            )
            for candidates in of_image
        ]


class RefiningHead(RegionHead):
    """A box for each class beside the classifier: what Fast R-CNN brought, and everything after it kept."""

    config: RefiningConfig
    regressor: nn.Linear

    def __init__(self, config: RefiningConfig, in_features: int, class_names: Sequence[str]) -> None:
        super().__init__(config, in_features, class_names, deltas=4 * (len(class_names) + 1))
        self.coder = BoxCoder(weights=config.box_weights)

    def decide(self, features: Tensor, proposals: Sequence[Tensor], samples: RoISamples | None) -> RoIOutputs:
        """Classes and deltas of P regions with features `[P, ...]`."""
        hidden = self.describe(features)
        deltas = self.regressor(hidden).unflatten(1, (-1, 4))
        return RoIOutputs(tuple(proposals), self.classifier(hidden), deltas, samples)

    def criterion(self, outputs: RoIOutputs) -> dict[str, Tensor]:
        """Classification and box loss (eq. 1), both averaged over all sampled regions of the batch."""
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
        scores = outputs.logits.float().softmax(dim=1)[:, 1:]
        boxes = self.coder.decode(outputs.deltas.float(), torch.cat(outputs.proposals))[:, 1:]
        return self.detect(boxes, scores, [len(proposals) for proposals in outputs.proposals], infos)


def _layer(in_features: int, out_features: int, rank: int | None) -> nn.Module:
    """A fully connected layer, or the two that its truncated SVD makes of it (Fast R-CNN, section 3.1)."""
    if rank is None:
        return nn.Linear(in_features, out_features)
    return nn.Sequential(nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features))

"""The classifier and the box regressor of regions: Fast R-CNN (Girshick, arXiv 1504.08083, section 2).

Sliding windows, R-CNN, Fast and Faster R-CNN differ in where regions come from and how their features are computed.
They share how regions are sampled for training, the losses (eq. 1) and the selection of detections, which are here.

Legend: B images, P regions of the batch together, N boxes of one image, K classes. Index 0 of the classifier is
background and private to these heads; label c of the data is index c + 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config
from detkit.nn.assign.assignment import Assignment, sample
from detkit.nn.assign.iou import IoUAssigner
from detkit.nn.blocks import BatchNorm2d
from detkit.nn.heads.class_rows import BACKGROUND, UNUSED, rows
from detkit.nn.losses import background_first, smooth_l1_loss
from detkit.nn.outputs import OutputsT, register_outputs
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows, SelectionConfig, select_detections
from detkit.ops.coders import BoxCoder
from detkit.structures import Target

NO_SAMPLES = "no sampled regions: the outputs were computed in evaluation mode"


class RegionConfig(Config):
    hidden: tuple[int, ...] = (1024, 1024)  # fully connected layers
    ranks: tuple[int, ...] = ()  # of those layers after a truncated SVD (`tools/compress.py`); empty: none is cut
    dropout: float = Field(0.0, ge=0, lt=1)  # after each hidden layer
    fg_threshold: float = Field(0.5, ge=0, le=1)  # IoU
    bg_threshold: tuple[float, float] = (0.0, 0.5)  # IoU [low, high)
    # part of a region that must lie inside an ignored object (crowd, difficult) for it to be neutral instead of
    # background; null: background, as in py-faster-rcnn and torchvision
    ignored_iof: float | None = Field(None, gt=0, le=1)
    batch_size_per_image: int = Field(512, ge=1)  # sampled regions
    positive_fraction: float = Field(0.25, ge=0, le=1)
    selection: SelectionConfig = SelectionConfig()

    @model_validator(mode="after")
    def _a_rank_for_each_layer(self) -> RegionConfig:
        if self.ranks and (len(self.ranks) != len(self.hidden) or min(self.ranks) < 1):
            raise ValueError(f"ranks: expected one of at least 1 for each of the {len(self.hidden)} layers of `hidden`")
        return self


class RefiningConfig(RegionConfig):
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # 1 / std of the deltas
    smooth_l1_beta: float = Field(1 / 9, ge=0)
    class_agnostic: bool = False  # one box of a region, instead of one for each class


@register_outputs
@dataclass(frozen=True, eq=False)
class RegionTargets:
    """The targets of sampled regions.

    labels   int64 `[P]`, 0 is background
    boxes    float32 `[P, 4]` xyxy in input px: the object's box; of background the region itself
    objects  int64 `[P]`: which of its image's objects it is, counted without the ignored ones; of background -1. Only
             a branch needs them
    """

    labels: Tensor
    boxes: Tensor
    objects: Tensor | None = None


@register_outputs
@dataclass(frozen=True, eq=False)
class RoIOutputs:
    """
    regions  the P regions
    logits   `[P, K + 1]`
    deltas   `[P, K + 1, 4]`, or `[P, 1, 4]` where boxes are of no class
    targets  of the regions when training, else None
    """

    regions: Regions
    logits: Tensor
    deltas: Tensor
    targets: RegionTargets | None


class RegionHead(nn.Module, ABC, Generic[OutputsT]):
    """What a head on regions is: a sample of regions for training, the losses of its outputs, and its detections."""

    class_weights: Tensor | None  # [K]: factors on the loss of the class where each is the target; None: all are 1

    def __init__(self, config: RegionConfig, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("class_weights", None, persistent=False)
        self.config = config
        self.num_classes = num_classes
        self.assigner = IoUAssigner(
            config.fg_threshold, config.bg_threshold, best_for_each_object=False, ignored_iof=config.ignored_iof
        )

    @torch.no_grad()
    def sample(self, regions: Regions, targets: Sequence[Target]) -> tuple[Regions, RegionTargets]:
        """Joins the objects to the regions and draws a training batch of each image."""
        boxes = [
            torch.cat([part, target.not_ignored().boxes])
            for part, target in zip(regions.to_list(len(targets)), targets, strict=True)
        ]
        config = self.config
        return self._with_targets(
            boxes, targets, lambda each: sample(each, config.batch_size_per_image, config.positive_fraction)
        )

    @torch.no_grad()
    def match(self, regions: Regions, targets: Sequence[Target]) -> tuple[Regions, RegionTargets]:
        """All valid regions that take part in the losses, and their targets; nothing is joined or drawn."""
        return self._with_targets(
            regions.to_list(len(targets)),
            targets,
            lambda each: (torch.nonzero(each.positive).squeeze(1), torch.nonzero(each.background).squeeze(1)),
        )

    def _with_targets(
        self,
        regions: Sequence[Tensor],
        targets: Sequence[Target],
        choose: Callable[[Assignment], tuple[Tensor, Tensor]],
    ) -> tuple[Regions, RegionTargets]:
        """`choose` answers with the rows of positives and of background in the boxes `[N, 4]` of an image."""
        chosen, labels, target_boxes, indices = [], [], [], []
        for boxes, target in zip(regions, targets, strict=True):
            objects = target.not_ignored()
            assignment = self.assigner.assign(boxes, target)
            positive, background = choose(assignment)
            matched = assignment.index[positive]
            chosen.append(boxes[torch.cat([positive, background])])
            labels += [objects.labels[matched] + 1, torch.zeros_like(background)]
            target_boxes += [objects.boxes[matched], boxes[background]]
            indices += [matched, torch.full_like(background, -1)]
        return Regions.from_list(chosen), RegionTargets(*map(torch.cat, (labels, target_boxes, indices)))

    @abstractmethod
    def criterion(self, outputs: OutputsT) -> dict[str, Tensor]:
        """Losses by name: scalars, already weighted. The targets are in the outputs, as the regions were sampled."""

    @abstractmethod
    def detect(self, outputs: OutputsT, windows: Tensor) -> DetectionRows:
        """windows `[B, 4]` xyxy in input px: where each picture lies on its canvas."""

    def select(self, regions: Regions, boxes: Tensor, scores: Tensor, windows: Tensor) -> DetectionRows:
        """Detections from boxes `[P, K, 4]` or `[P, 4]` and scores `[P, K]` of the regions."""
        scores = torch.where(regions.valid[:, None], scores, -1.0)  # below every threshold
        return select_detections(boxes, scores, regions.images, windows, self.config.selection)


class LayeredRegionHead(RegionHead[OutputsT]):
    """Hidden layers on the features of a region, then a classifier.

    in_features  numbers in the features of a region
    num_deltas   outputs of a regressor on the last hidden layer; 0: there is none
    """

    def __init__(self, config: RegionConfig, in_features: int, num_classes: int, num_deltas: int = 0) -> None:
        super().__init__(config, num_classes)
        widths = [in_features, *config.hidden]
        ranks = config.ranks or (None,) * len(config.hidden)
        self.hidden = nn.ModuleList(_layer(a, b, rank) for (a, b), rank in zip(pairwise(widths), ranks, strict=True))
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(widths[-1], num_classes + 1)
        self.regressor = nn.Linear(widths[-1], num_deltas) if num_deltas else None
        for layer in self.hidden.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)  # as Detectron2; torch's default fades layer by layer
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for last, std in ((self.classifier, 0.01), (self.regressor, 0.001)):  # Fast R-CNN section 2.3
            if last is not None:
                nn.init.normal_(last.weight, std=std)
                nn.init.zeros_(last.bias)

    def last_hidden(self, features: Tensor) -> Tensor:
        """The last hidden layer `[P, F]` of regions with features `[P, ...]`."""
        hidden = features.flatten(1)
        for layer in self.hidden:
            hidden = self.dropout(F.relu(layer(hidden)))
        return hidden

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum of the cross-entropy of sampled regions, logits `[P, K + 1]` and labels `[P]`, 0 is background."""
        return F.cross_entropy(logits.float(), labels, background_first(self.class_weights), reduction="sum")

    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        """Which rows of its weights belong to which class, had it `num_classes`; see `detkit.nn.heads.class_rows`."""
        return {"classifier": rows(BACKGROUND, range(num_classes))}


class RefiningHead(LayeredRegionHead[RoIOutputs]):
    """A box for each class, or one for all, beside the classifier: Fast R-CNN and everything after it."""

    config: RefiningConfig
    regressor: nn.Linear

    def __init__(self, config: RefiningConfig, in_features: int, num_classes: int) -> None:
        num_boxes = 1 if config.class_agnostic else num_classes + 1
        super().__init__(config, in_features, num_classes, num_deltas=4 * num_boxes)
        self.coder = BoxCoder(weights=config.box_weights)

    def predict(self, features: Tensor, regions: Regions, targets: RegionTargets | None) -> RoIOutputs:
        """Classes and deltas of P regions with features `[P, ...]`."""
        hidden = self.last_hidden(features)
        deltas = self.regressor(hidden).unflatten(1, (-1, 4))
        return RoIOutputs(regions, self.classifier(hidden), deltas, targets)

    def criterion(self, outputs: RoIOutputs) -> dict[str, Tensor]:
        """Classification and box loss (eq. 1), both averaged over all sampled regions of the batch."""
        if outputs.targets is None:
            raise ValueError(NO_SAMPLES)
        labels = outputs.targets.labels
        positive = torch.nonzero(labels > 0).squeeze(1)
        target_deltas = self.coder.encode(outputs.targets.boxes[positive], outputs.regions.boxes[positive])
        column = torch.zeros_like(positive) if self.config.class_agnostic else labels[positive]
        deltas = outputs.deltas[positive, column].float()
        num_sampled = max(1, len(labels))
        box = smooth_l1_loss(deltas, target_deltas, self.config.smooth_l1_beta).sum()
        return {
            "roi_class": self.class_loss(outputs.logits, labels) / num_sampled,
            "roi_box": box / num_sampled,
        }

    @torch.no_grad()
    def detect(self, outputs: RoIOutputs, windows: Tensor) -> DetectionRows:
        return self.select(outputs.regions, self.refined(outputs), self.scores(outputs), windows)

    def scores(self, outputs: RoIOutputs) -> Tensor:
        """`[P, K]`"""
        return outputs.logits.float().softmax(dim=1)[:, 1:]

    def refined(self, outputs: RoIOutputs) -> Tensor:
        """The boxes xyxy in input px: `[P, K, 4]`, or `[P, 4]` where they are of no class."""
        boxes = self.coder.decode(outputs.deltas.float(), outputs.regions.boxes)
        return boxes[:, 0] if self.config.class_agnostic else boxes[:, 1:]

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        """The box of the background is computed, but nothing reads it."""
        of_classes = super().class_rows(num_classes)
        if self.config.class_agnostic:
            return of_classes
        return of_classes | {"regressor": rows(UNUSED, range(num_classes)).repeat_interleave(4)}


def conv_layers(in_channels: int, channels: Sequence[int], norm: Literal["none", "bn"]) -> nn.Sequential:
    """3x3 convolutions of these widths on the maps of regions, each with its norm, if any, and ReLU: `[P, C, S, S]`
    stays as large."""
    layers = nn.Sequential()
    for before, width in pairwise([in_channels, *channels]):
        layers.append(nn.Conv2d(before, width, 3, padding=1, bias=norm == "none"))
        if norm == "bn":
            layers.append(BatchNorm2d(width))
        layers.append(nn.ReLU())
    init_relu_convs(layers)
    return layers


def init_relu_convs(module: nn.Module) -> None:
    """Convolutions before a ReLU start with activations that neither fade nor grow (torchvision's heads)."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


def _layer(in_features: int, out_features: int, rank: int | None) -> nn.Module:
    """A fully connected layer, or the two of its truncated SVD (Fast R-CNN, section 3.1)."""
    if rank is None:
        return nn.Linear(in_features, out_features)
    return nn.Sequential(nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features))

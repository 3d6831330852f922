"""What heads that predict a set of objects share: DETR (Carion et al., arXiv 2005.12872) and its descendants.

Legend: B images, S cells of the feature map, Q predictions (queries or cells), D width, L layers that predict,
K classes, C class logits, P matched pairs of a layer.
Inside the head boxes are cxcywh in parts of the picture's sides, padding excluded.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
import torch.distributed
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.assign.hungarian import HungarianAssigner, Pairs, SetTargets
from detkit.nn.heads.head import Head
from detkit.nn.losses import FocalLossConfig, giou_loss, sigmoid_focal_loss
from detkit.nn.outputs import register_outputs
from detkit.nn.selection import DetectionRows, SelectionConfig, select_detections
from detkit.nn.transformer import Encoder, TransformerConfig, map_pos_embed, padding_mask
from detkit.ops.boxes import at_least_float32, cxcywh_to_xyxy
from detkit.ops.iou import box_iof, box_iou
from detkit.structures import Size, Target


class SetSelectionConfig(SelectionConfig):
    """The predictions of the last layer with a score above 0 are detections; none is suppressed, as published."""

    score_threshold: float = Field(0.0, ge=0, le=1)  # detections must score more
    nms_threshold: float | None = Field(None, ge=0, le=1)  # IoU above which two of a class are one; null: never
    max_detections: int = Field(100, ge=1)  # of an image


class SetLossConfig(Config):
    """Matching, losses and detections of a set of predictions. Defaults: DETR, section A.4 of the paper."""

    class_cost: float = Field(1.0, ge=0)  # costs of the matching
    l1_cost: float = Field(5.0, ge=0)
    giou_cost: float = Field(2.0, ge=0)
    class_weight: float = Field(1.0, ge=0)  # weights of the losses
    l1_weight: float = Field(5.0, ge=0)
    giou_weight: float = Field(2.0, ge=0)
    ignored_iof: float | None = Field(None, gt=0, le=1)  # part of a predicted box that must lie inside an ignored
    # object (crowd, difficult) for the prediction to be neutral instead of "no object"; null: "no object", as published
    selection: SetSelectionConfig = SetSelectionConfig()


class SetHeadConfig(SetLossConfig):
    """Settings that all heads with queries have. Defaults: DETR, section A.4 of the paper."""

    transformer: TransformerConfig = TransformerConfig()
    num_queries: int = Field(100, ge=1)  # predictions of an image
    temperature: float = Field(10000.0, gt=1)  # longest wavelength of the position embeddings; the shortest is 1


@register_outputs
@dataclass(frozen=True, eq=False)
class DETROutputs:
    """
    logits  `[L, B, Q, C]`
    boxes   at least float32 `[L, B, Q, 4]`
    sides   float32 `[B, 4]`: (w, h, w, h) of the pictures in input px
    """

    logits: Tensor
    boxes: Tensor
    sides: Tensor


@register_outputs
@dataclass(frozen=True, eq=False)
class ProposingOutputs(DETROutputs):
    """`logits` are `[L, B, Q, K]`, those of a sigmoid for each class.

    proposals  predictions of the cells, `[1, B, S, ...]`, or None
    """

    proposals: DETROutputs | None


class SetOutputs(Protocol):
    """What all outputs have in common: predictions and sides as `DETROutputs` has them."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def boxes(self) -> Tensor: ...
    @property
    def sides(self) -> Tensor: ...


SetOutputsT = TypeVar("SetOutputsT", bound=SetOutputs)


@dataclass(frozen=True, eq=False)
class PredictionGroup:
    """Predictions that are matched with the objects of their image, in each layer separately.

    name    prefix of the names of its losses
    logits  `[L, B, Q, C]`
    boxes   `[L, B, Q, 4]`
    copies  predictions of a layer that answer for each object
    any_class  they say only whether there is an object: all objects count as of the first class
    pairs   of predictions and objects, the same in every layer; None: the best ones are searched
    """

    name: str
    logits: Tensor
    boxes: Tensor
    copies: int = 1
    any_class: bool = False
    pairs: Pairs | None = None


@dataclass(frozen=True, eq=False)
class Matching:
    """What the predictions of a group answer for; boxes may answer for more than classes do (D-FINE).

    class_count, box_count  scalars: by which sums of losses are divided
    """

    classes: Pairs
    boxes: Pairs
    class_count: Tensor
    box_count: Tensor


@dataclass(frozen=True, eq=False)
class ClassTargets:
    """
    labels   int64 `[L, B, Q]`; K: no object
    quality  `[L, B, Q]`: IoU of a prediction with its object, without gradient; 0 without one
    weights  `[L, B, Q]`: factor on the loss of each prediction, 0 where it takes no part
    counted  `[L, B, Q]`, 0 or 1: predictions that a mean is over
    count    scalar: by which a sum over the predictions is divided, if the loss is no mean over them
    """

    labels: Tensor
    quality: Tensor
    weights: Tensor
    counted: Tensor
    count: Tensor


class ClassPrediction(ABC):
    """How logits express classes and "no object": their cost in the matching, their loss and their scores."""

    @abstractmethod
    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits `[L, Q, C]`, labels `[M]` -> `[L, Q, M]`."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: ClassTargets) -> Tensor:
        """Logits `[L, B, Q, C]` -> `[L]`."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Logits `[B, Q, C]` -> `[B, Q, K]`; 0 where a prediction cannot be a detection of the class."""


class SigmoidClasses(ClassPrediction):
    """Each class by itself, with the focal loss; "no object" is none of them."""

    def __init__(self, num_classes: int, focal: FocalLossConfig) -> None:
        self.num_classes, self.focal = num_classes, focal

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """By how much the focal loss of the class would rise if it were an object's (Deformable DETR's code)."""
        logits = logits[:, :, labels]
        positive = sigmoid_focal_loss(logits, torch.ones_like(logits), self.focal)
        return positive - sigmoid_focal_loss(logits, torch.zeros_like(logits), self.focal)

    def loss(self, logits: Tensor, targets: ClassTargets) -> Tensor:
        one_hot = F.one_hot(targets.labels, self.num_classes + 1)[..., :-1].to(logits.dtype)
        losses = sigmoid_focal_loss(logits, one_hot, self.focal) * targets.weights[..., None]
        return losses.sum(dim=(1, 2, 3)) / targets.count

    def scores(self, logits: Tensor) -> Tensor:
        """A prediction may be a detection of several classes."""
        return logits.sigmoid()


class SetAssigner(Protocol):
    def assign(self, logits: Tensor, boxes: Tensor, targets: SetTargets) -> Pairs:
        """logits `[L, B, Q, C]`, boxes `[L, B, Q, 4]`"""


class SetHead(Head[SetOutputsT]):
    """Matching, losses and detections. A subclass adds the network and `forward`."""

    config: SetLossConfig

    def __init__(self, config: SetLossConfig, num_classes: int, classes: ClassPrediction) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.classes = classes
        self.assigner: SetAssigner = HungarianAssigner(
            classes.cost, config.class_cost, config.l1_cost, config.giou_cost
        )

    def groups(self, outputs: SetOutputsT) -> list[PredictionGroup]:
        """The groups of predictions that have losses. A head that predicts not only in its decoder adds to them."""
        return [PredictionGroup("detr", outputs.logits, outputs.boxes)]

    def criterion(self, outputs: SetOutputsT, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The losses of each group: of its last layer, and as `aux` the sum of those of the layers before.

        Sums over boxes are divided by the number of objects of the batch, the mean over the processes, at least 1.
        """
        objects = SetTargets.of(targets, outputs.sides)
        groups, losses = self.groups(outputs), {}
        for group, matching in zip(groups, self.match(groups, objects), strict=True):
            neutral = self._inside_ignored(group.boxes, targets, outputs.sides)
            for name, loss in self.group_losses(group, objects, matching, neutral).items():
                losses[f"{group.name}_{name}"] = loss[-1]
                if loss.shape[0] > 1:
                    losses[f"{group.name}_aux_{name}"] = loss[:-1].sum()
        return losses

    def match(self, groups: Sequence[PredictionGroup], objects: SetTargets) -> list[Matching]:
        """Each group by itself; losses are divided by the number of objects, each counted once for each copy."""
        count = mean_over_processes(objects.boxes.new_tensor(float(len(objects.boxes)))).clamp(min=1)
        matchings = []
        for group in groups:
            pairs = group.pairs or self._assign(group, objects)
            matchings.append(Matching(pairs, pairs, count * group.copies, count * group.copies))
        return matchings

    def _assign(self, group: PredictionGroup, objects: SetTargets) -> Pairs:
        copies, rows = objects.repeat(group.copies)
        if group.any_class:
            copies = replace(copies, labels=torch.zeros_like(copies.labels))
        pairs = self.assigner.assign(group.logits, group.boxes, copies)
        return replace(pairs, objects=rows[pairs.objects])

    def group_losses(
        self, group: PredictionGroup, objects: SetTargets, matching: Matching, neutral: Tensor
    ) -> dict[str, Tensor]:
        """The weighted losses, each `[L]`.

        neutral  bool `[L, B, Q]`: predictions that, if they are not matched, take no part in the loss of the class
        """
        config = self.config
        targets = self._class_targets(group, objects, matching, neutral)
        boxes, target_boxes = matched_boxes(group, objects, matching.boxes)
        l1 = (boxes - target_boxes).abs().sum(dim=(1, 2)) / matching.box_count
        giou = giou_loss(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes)).sum(dim=1) / matching.box_count
        return {
            "class": config.class_weight * self.classes.loss(at_least_float32(group.logits), targets),
            "l1": config.l1_weight * l1,
            "giou": config.giou_weight * giou,
        }

    def _class_targets(
        self, group: PredictionGroup, objects: SetTargets, matching: Matching, neutral: Tensor
    ) -> ClassTargets:
        pairs, device = matching.classes, group.logits.device
        matched = pairs.rows()
        labels = torch.full(group.logits.shape[:3], self.num_classes, device=device)
        labels[matched] = 0 if group.any_class else objects.labels[pairs.objects]
        quality = torch.zeros(labels.shape, device=device)
        with torch.no_grad():
            boxes, target_boxes = (cxcywh_to_xyxy(part) for part in matched_boxes(group, objects, pairs))
            quality[matched] = box_iou(boxes, target_boxes, paired=True).to(quality.dtype)
        counted = weights = (~neutral | (labels < self.num_classes)).float()
        if self.class_weights is not None:
            weights = counted * F.pad(self.class_weights, (0, 1), value=1.0)[labels]
        return ClassTargets(labels, quality, weights, counted, matching.class_count)

    @torch.no_grad()
    def _inside_ignored(self, boxes: Tensor, targets: Sequence[Target], sides: Tensor) -> Tensor:
        """bool `[L, B, Q]`: `ignored_iof` or more of the box lies inside an object that is to be ignored."""
        inside = torch.zeros(boxes.shape[:3], dtype=torch.bool, device=boxes.device)
        if self.config.ignored_iof is None:
            return inside
        for image, target in enumerate(targets):
            ignored = target.ignored().boxes / sides[image]
            if len(ignored):
                overlap = box_iof(cxcywh_to_xyxy(boxes[:, image]), ignored.expand(len(boxes), -1, -1))
                inside[:, image] = overlap.amax(dim=-1) >= self.config.ignored_iof
        return inside

    def detect(self, outputs: SetOutputsT, windows: Tensor) -> DetectionRows:
        """From the predictions of the last layer; padding is on the right and below, so boxes need no offset."""
        boxes = cxcywh_to_xyxy(outputs.boxes[-1]) * outputs.sides[:, None]
        scores = self.classes.scores(outputs.logits[-1])
        return select_detections(boxes, scores, None, windows, self.config.selection)


class OneLevelSetHead(SetHead[SetOutputsT]):
    """An encoder of one level. A subclass adds the decoder and its queries."""

    config: SetHeadConfig

    def __init__(
        self,
        config: SetHeadConfig,
        in_channels: int,
        num_classes: int,
        classes: ClassPrediction,
        encoder: type[Encoder] = Encoder,
    ) -> None:
        super().__init__(config, num_classes, classes)
        self.project = nn.Conv2d(in_channels, config.transformer.width, kernel_size=1)
        self.encoder = encoder(config.transformer)

    def encode(self, features: Tensor, sizes: Tensor, canvas: Size) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """features `[B, C, h, w]` -> memory and its position embedding `[B, S, D]`, padding bool `[B, h, w]`, mask.

        The mask `[B, 1, 1, S]` is False at padding. Where nothing is padded it is None, which saves time, but only on
        the CPU: a GPU would lose more by waiting for the answer, and an exported program cannot ask.
        """
        padding = padding_mask(sizes, canvas, (features.shape[2], features.shape[3]))
        pos_embed = map_pos_embed(padding, self.config.transformer.width, self.config.temperature)
        pos_embed = pos_embed.flatten(1, 2).to(features.dtype)
        mask = None
        if torch.compiler.is_compiling() or padding.device.type != "cpu" or padding.any():
            mask = ~padding.flatten(1)[:, None, None]
        memory = self.project(features).flatten(2).transpose(1, 2)
        return self.encoder(memory, pos_embed, mask), pos_embed, padding, mask


def classifier_with_prior(width: int, num_classes: int, prior: float) -> nn.Linear:
    """A layer whose sigmoid is about `prior` for every class before training."""
    classifier = nn.Linear(width, num_classes)
    nn.init.constant_(classifier.bias, -math.log(1 / prior - 1))
    return classifier


def matched_boxes(group: PredictionGroup, objects: SetTargets, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """cxcywh of the predictions and of their objects, `[L, P, 4]` each."""
    return at_least_float32(group.boxes[pairs.rows()]), objects.boxes[pairs.objects]


def picture_sides(sizes: Tensor) -> Tensor:
    """float32 `[B, 4]`: (w, h, w, h) of pictures of `sizes`, `[B, 2]` (h, w)."""
    return sizes.flip(1).repeat(1, 2).float()


def mean_over_processes(value: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value

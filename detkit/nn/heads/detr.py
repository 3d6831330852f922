"""DETR's head: a set of predictions from object queries (Carion et al., arXiv 2005.12872).

Legend: B images, S cells of the feature map, Q queries, D width, L decoder layers, K classes, M objects of the batch,
P pairs of a query and an object in one layer.
Inside the head boxes are cxcywh in parts of the image's sides, padding excluded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.assign.hungarian import Pairs, match_hungarian
from detkit.nn.heads.detections import select_detections
from detkit.nn.transformer import MLP, Decoder, Encoder, TransformerConfig, map_positions, padding_mask
from detkit.ops.boxes import at_least_float32, cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.ops.iou import generalized_box_iou
from detkit.structures import Detections, ImageInfo, Size, Target

MAX_DETECTIONS = 100  # of an image


class SetHeadConfig(Config):
    """What every head that predicts a set is told; defaults: the paper."""

    transformer: TransformerConfig = TransformerConfig()
    num_queries: int = Field(100, ge=1)  # objects of an image that can be found
    class_cost: float = Field(1.0, ge=0)
    l1_cost: float = Field(5.0, ge=0)
    giou_cost: float = Field(2.0, ge=0)
    l1_weight: float = Field(5.0, ge=0)
    giou_weight: float = Field(2.0, ge=0)


class DETRHeadConfig(SetHeadConfig):
    name: Literal["detr"] = "detr"
    no_object_weight: float = Field(0.1, gt=0)  # in the cross-entropy, of a query that answers for no object


@dataclass(frozen=True, eq=False)
class DETROutputs:
    """
    logits  `[L, B, Q, K + 1]`, "no object" last
    boxes   `[L, B, Q, 4]`
    sides   `[B, 4]`: (w, h, w, h) of the images in input px
    """

    logits: Tensor
    boxes: Tensor
    sides: Tensor


@dataclass(frozen=True, eq=False)
class Objects:
    """Of the whole batch: boxes `[M, 4]`, labels `[M]`, and how many each image has."""

    boxes: Tensor
    labels: Tensor
    counts: list[int]


class SetHead(nn.Module, ABC):
    """Encoder, matching, criterion and postprocess of heads that differ in their queries and their classes."""

    temperature = 10000.0  # longest wavelength of the positions of the map

    def __init__(self, config: SetHeadConfig, in_channels: int, class_names: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.class_names = tuple(class_names)
        self.project = nn.Conv2d(in_channels, config.transformer.width, kernel_size=1)
        self.encoder = Encoder(config.transformer)

    @abstractmethod
    def forward(self, features: Tensor, sizes: Sequence[Size], canvas: Size) -> DETROutputs:
        """features `[B, C, h, w]` of a canvas (h, w) px on which the images have `sizes` (h, w) px."""

    @abstractmethod
    def class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits `[L, Q, K']`, labels `[M]` -> `[L, Q, M]`, weighted."""

    @abstractmethod
    def class_loss(self, logits: Tensor, labels: Tensor, norm: Tensor) -> Tensor:
        """Logits `[L, B, Q, K']`, labels `[L, B, Q]`, K where there is no object -> `[L]`, weighted."""

    @abstractmethod
    def class_scores(self, logits: Tensor) -> Tensor:
        """Logits `[B, Q, K']` -> `[B, Q, K]`; 0 where a query is no detection of the class."""

    def encode(self, features: Tensor, sizes: Sequence[Size], canvas: Size) -> tuple[Tensor, Tensor, Tensor | None]:
        """Memory and positions `[B, S, D]`; mask `[B, 1, 1, S]`, False at padding, or None if there is none."""
        padding = padding_mask(sizes, canvas, (features.shape[2], features.shape[3]), features.device)
        positions = map_positions(padding, self.config.transformer.width, self.temperature)
        positions = positions.flatten(1, 2).to(features.dtype)
        mask = None if all(size == canvas for size in sizes) else ~padding.flatten(1)[:, None, None]
        memory = self.project(features).flatten(2).transpose(1, 2)
        return self.encoder(memory, positions, mask), positions, mask

    def criterion(self, outputs: DETROutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Boxes are divided by the number of objects of the batch, the mean over the processes, at least 1."""
        objects = batch_objects(outputs.sides, targets)
        norm = outputs.sides.new_tensor(float(len(objects.boxes)))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(norm)
            norm /= torch.distributed.get_world_size()
        return self.set_losses(outputs, objects, norm.clamp(min=1))

    def set_losses(self, outputs: DETROutputs, objects: Objects, norm: Tensor) -> dict[str, Tensor]:
        """The loss of the last layer, and as `aux_` the sum of those of the layers before (section 3.2)."""
        losses = self.layer_losses(outputs, objects, self.match(outputs, objects), norm)
        last = {f"detr_{name}": loss[-1] for name, loss in losses.items()}
        return last | {f"detr_aux_{name}": loss[:-1].sum() for name, loss in losses.items()}

    @torch.no_grad()
    def match(self, outputs: DETROutputs, objects: Objects) -> Pairs:
        """The queries that answer for the objects, in every layer; the costs of all layers at once (equation 1)."""
        config, costs = self.config, []
        of_image = zip(*(torch.split(x, objects.counts) for x in (objects.boxes, objects.labels)), strict=True)
        for image, (wanted, labels) in enumerate(of_image):
            boxes, logits = outputs.boxes[:, image].float(), outputs.logits[:, image].float()
            wanted = wanted.float().expand(len(boxes), -1, -1)
            overlap = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted))
            distance = torch.cdist(boxes, wanted, p=1)
            costs.append(self.class_cost(logits, labels) + config.l1_cost * distance - config.giou_cost * overlap)
        return match_hungarian(costs)

    def layer_losses(self, outputs: DETROutputs, objects: Objects, pairs: Pairs, norm: Tensor) -> dict[str, Tensor]:
        """Each `[L]`, weighted."""
        layers = torch.arange(len(outputs.boxes), device=outputs.boxes.device)[:, None]
        labels = torch.full(outputs.logits.shape[:3], len(self.class_names), device=outputs.logits.device)
        labels[layers, pairs.images, pairs.queries] = objects.labels[pairs.objects]
        found = at_least_float32(outputs.boxes[layers, pairs.images, pairs.queries])
        wanted = objects.boxes[pairs.objects]
        overlap = generalized_box_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted), paired=True)
        return {
            "class": self.class_loss(at_least_float32(outputs.logits), labels, norm),
            "l1": self.config.l1_weight * (found - wanted).abs().sum(dim=(1, 2)) / norm,
            "giou": self.config.giou_weight * (1 - overlap).sum(dim=1) / norm,
        }

    def postprocess(self, outputs: DETROutputs, infos: Sequence[ImageInfo]) -> list[Detections]:
        """Every query of the last layer is a detection; nothing is suppressed."""
        boxes = cxcywh_to_xyxy(outputs.boxes[-1]) * outputs.sides[:, None]
        scores = self.class_scores(outputs.logits[-1])
        return [
            select_detections(
                *of_image, self.class_names, score_threshold=0, nms_threshold=None, max_detections=MAX_DETECTIONS
            )
            for of_image in zip(boxes, scores, infos, strict=True)
        ]


class DETRHead(SetHead):
    """The paper's: learned positions as queries, a softmax in which "no object" is the last class."""

    def __init__(self, config: DETRHeadConfig, in_channels: int, class_names: Sequence[str]) -> None:
        super().__init__(config, in_channels, class_names)
        width = config.transformer.width
        self.no_object_weight = config.no_object_weight
        self.queries = nn.Parameter(torch.randn(config.num_queries, width))
        self.decoder = Decoder(config.transformer)
        self.classifier = nn.Linear(width, len(class_names) + 1)
        self.regressor = MLP(width, width, width, 4)

    def forward(self, features: Tensor, sizes: Sequence[Size], canvas: Size) -> DETROutputs:
        memory, positions, mask = self.encode(features, sizes, canvas)
        said = self.decoder(self.queries.expand(len(memory), -1, -1), memory, positions, mask)
        boxes = at_least_float32(self.regressor(said)).sigmoid()
        return DETROutputs(self.classifier(said), boxes, image_sides(sizes, boxes.device))

    def class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A probability and no logarithm, commensurate with the costs of the boxes (section 3.1)."""
        return -self.config.class_cost * logits.softmax(dim=-1)[:, :, labels]

    def class_loss(self, logits: Tensor, labels: Tensor, norm: Tensor) -> Tensor:
        """Weighted means over the queries."""
        weights = logits.new_ones(logits.shape[-1])
        weights[-1] = self.no_object_weight
        loss = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), weights, reduction="none")
        return loss.view(len(logits), -1).sum(dim=1) / weights[labels].sum(dim=(1, 2))

    def class_scores(self, logits: Tensor) -> Tensor:
        """A query is of its best class."""
        scores = logits.softmax(dim=-1)[..., :-1]
        return scores.where(scores == scores.amax(dim=-1, keepdim=True), 0.0)


def image_sides(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """float32 `[B, 4]`: (w, h, w, h) of images of `sizes` (h, w)"""
    return torch.tensor([(width, height) * 2 for height, width in sizes], dtype=torch.float32, device=device)


def batch_objects(sides: Tensor, targets: Sequence[Target]) -> Objects:
    boxes, labels = zip(*(target.objects() for target in targets), strict=True)
    counts = [len(of_image) for of_image in boxes]
    per_object = sides.repeat_interleave(torch.tensor(counts, device=sides.device), dim=0)
    return Objects(xyxy_to_cxcywh(torch.cat(boxes)) / per_object, torch.cat(labels), counts)

"""YOLOv5's predictions and loss (release 6.0; there is no paper), with which YOLOv7 is trained too.

Legend: B images, L levels, N predictions of one image over all levels, P positives of the batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.nn.assign.assignment import BACKGROUND, Assignment, spare_ignored
from detkit.nn.assign.shape_ratio import Level, similar_anchors
from detkit.nn.heads.yolo import YOLOHead, YOLOHeadConfig, YOLOOutputs, YOLOSelectionConfig
from detkit.nn.heads.yolo_v3 import COCO_ANCHORS, Anchors
from detkit.ops.coders import GridCoder
from detkit.ops.iou import complete_box_iou
from detkit.structures import Target

REFERENCE_SIZE = 640  # px, of the input that the first objectness is for: eight objects an image
BALANCE = {3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06)}  # factors of the objectness loss of 3 or 4 levels


class YOLOv5SelectionConfig(YOLOSelectionConfig):
    """Defaults: YOLOv5's evaluation."""

    score_threshold: float = Field(0.001, ge=0, le=1)
    nms_threshold: float | None = Field(0.6, ge=0, le=1)


class YOLOv5HeadConfig(YOLOHeadConfig):
    """Defaults: YOLOv5's, with the weights of its losses for 80 classes and inputs of 640 px."""

    at_test: ClassVar = ()

    anchors: Anchors = COCO_ANCHORS  # width and height in input px, a list for each level, finest first
    max_ratio: float = Field(4.0, gt=1)  # of the sides of an object and an anchor that answers for it
    box_weight: float = Field(0.05, ge=0)
    object_weight: float = Field(1.0, ge=0)
    class_weight: float = Field(0.5, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    selection: YOLOv5SelectionConfig = YOLOv5SelectionConfig()


class YOLOv5Head(YOLOHead):
    """Several cells and anchors answer for an object, without regard to other objects."""

    def __init__(
        self, config: YOLOv5HeadConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__(config, config.anchors, in_channels, strides, num_classes)
        self.config = config
        self.coder = GridCoder(scale_xy=2.0, squared=True)
        for conv, stride in zip(self.predict, strides, strict=True):
            assert isinstance(conv.bias, Tensor)
            bias = conv.bias.detach().view(-1, 5 + num_classes)
            bias[:, 4] = math.log(8 / (REFERENCE_SIZE / stride) ** 2)
            bias[:, 5:] = math.log(0.6 / (num_classes - 0.99999))

    def class_scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def levels(self, outputs: YOLOOutputs) -> list[Level]:
        levels, start = [], 0
        for number, stride in enumerate(self.strides):
            anchors = self.get_buffer(f"anchors{number}")
            last = outputs.cells[(outputs.strides[:, 0] == stride).nonzero()[-1, 0]]
            columns, rows = (last + 1).tolist()
            levels.append(Level(stride, columns, rows, anchors, start))
            start = levels[-1].end
        return levels

    @torch.no_grad()
    def pairs(self, outputs: YOLOOutputs, levels: Sequence[Level], image: int, target: Target) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The predictions of an image that answer for an object, and those objects, int64 `[P]` each."""
        return similar_anchors(target.not_ignored().boxes, levels, self.config.max_ratio)

    def criterion(self, outputs: YOLOOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Means over the positives and predictions of each level, added up, times the images of the batch."""
        config, levels, raw = self.config, self.levels(outputs), outputs.raw.float()
        pairs = [self.pairs(outputs, levels, image, target) for image, target in enumerate(targets)]
        image = torch.cat([torch.full_like(rows, number) for number, (rows, _) in enumerate(pairs)])
        rows = torch.cat([rows for rows, _ in pairs])
        objects = [target.not_ignored() for target in targets]
        boxes, labels = (
            torch.cat([getattr(part, name)[chosen] for part, (_, chosen) in zip(objects, pairs, strict=True)])
            for name in ("boxes", "labels")
        )
        predicted = self.decode(outputs, raw[image, rows, :4], rows)
        ciou = complete_box_iou(predicted, boxes, paired=True)
        object_targets = raw.new_zeros(raw.shape[:2])  # of predictions on which several objects fall, the best overlap
        flat = image * raw.shape[1] + rows
        object_targets.view(-1).scatter_reduce_(0, flat, ciou.detach().clamp(min=0).to(raw.dtype), "amax")
        objectness = F.binary_cross_entropy_with_logits(
            raw[..., 4], object_targets, self._weights(outputs, flat, targets), reduction="none"
        )
        classes = self._class_loss(raw[image, rows, 5:], labels)
        losses = [
            (
                _mean((1 - ciou)[(rows >= level.start) & (rows < level.end)]),
                balance * objectness[:, level.start : level.end].mean(),
                _mean(classes[(rows >= level.start) & (rows < level.end)]),
            )
            for level, balance in zip(levels, BALANCE.get(len(levels), (1.0,) * len(levels)), strict=True)
        ]
        box_loss, objectness_loss, class_loss = (torch.stack(parts).sum() for parts in zip(*losses, strict=True))
        factors = {"box": config.box_weight, "object": config.object_weight, "class": config.class_weight}
        parts = zip(factors.items(), (box_loss, objectness_loss, class_loss), strict=True)
        return {f"yolo_{name}": len(raw) * factor * loss for (name, factor), loss in parts}

    def _class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """`[P, K]`; with one class there is nothing to learn."""
        if self.num_classes == 1:
            return logits.detach() * 0
        smoothing = self.config.label_smoothing
        class_targets = F.one_hot(labels, self.num_classes) * (1 - smoothing) + smoothing / 2
        factors = None if self.class_weights is None else self.class_weights[labels, None]
        return F.binary_cross_entropy_with_logits(logits, class_targets.to(logits.dtype), factors, reduction="none")

    @torch.no_grad()
    def _weights(self, outputs: YOLOOutputs, positive: Tensor, targets: Sequence[Target]) -> Tensor:
        """float32 `[B, N]`: of each prediction in the loss of the objectness; 0 inside ignored objects.

        positive  int64 `[P]`: image * N + prediction
        """
        index = torch.full(outputs.raw.shape[:2], BACKGROUND, device=positive.device)
        index.view(-1)[positive] = 0
        ones = torch.ones_like(index, dtype=torch.float32)
        if self.ignored_iof is None:
            return ones
        parts = zip(index, ones, self.boxes(outputs), targets, strict=True)
        spared = [
            spare_ignored(Assignment(row, one), boxes, target, self.ignored_iof) for row, one, boxes, target in parts
        ]
        return torch.stack([assignment.weight for assignment in spared])


def _mean(values: Tensor) -> Tensor:
    """The mean; of no value 0, connected to the network all the same."""
    return values.sum() / max(1, values.numel())

"""SSD's predictions (Liu et al., arXiv 1512.02325): boxes and classes at default boxes of several levels.

Legend: B images, L levels, A priors of all levels together, P positives of the batch, K classes. Index 0 of the
classifier is background and private to this file; label c of the data is index c + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config
from detkit.nn.anchors import PriorConfig, PriorGrid
from detkit.nn.assign.iou import BipartiteAssigner
from detkit.nn.assign.positives import Positives, positives_of
from detkit.nn.blocks import ConvBlock, per_anchor
from detkit.nn.heads.class_rows import BACKGROUND, rows
from detkit.nn.heads.head import Head
from detkit.nn.losses import background_first, smooth_l1_loss
from detkit.nn.outputs import register_outputs
from detkit.nn.selection import DetectionRows, SelectionConfig, select_detections
from detkit.ops.boxes import at_least_float32
from detkit.ops.coders import BoxCoder
from detkit.structures import Size, Target


class SSDSelectionConfig(SelectionConfig):
    score_threshold: float = Field(0.01, ge=0, le=1)
    top_k_per_class: int | None = Field(400, ge=1)
    nms_threshold: float | None = Field(0.45, ge=0, le=1)
    max_detections: int = Field(200, ge=1)


class SSDHeadConfig(Config):
    """Defaults: SSD300 on VOC."""

    priors: PriorConfig = PriorConfig()
    kernel_size: Literal[1, 3] = 3
    depthwise: bool = False  # SSDLite: a 3x3 depthwise convolution, then a 1x1
    norm_eps: float = Field(1e-5, ge=0)  # of the depthwise convolution's batch norm
    norm_momentum: float = Field(0.1, gt=0, le=1)
    fg_threshold: float = Field(0.5, ge=0, le=1)  # IoU
    ignored_iof: float | None = Field(
        None, ge=0, le=1
    )  # part of a prior that must lie inside an ignored object (crowd,
    # difficult) for it to be neutral instead of background; null: background, as published
    negative_ratio: float = Field(3.0, ge=0)  # mined background priors for each positive one, in each image
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # 1 / variance
    smooth_l1_beta: float = Field(1.0, gt=0)  # distance from which the loss of a box is linear
    clamp: float | None = None  # largest log-scale decoded; log(1000 / 16) in torchvision, none in Caffe
    selection: SSDSelectionConfig = SSDSelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class SSDOutputs:
    """
    logits  `[B, A, K + 1]`
    deltas  `[B, A, 4]`; of tubelets `[B, A, 4 * T]`, the box of one frame after the other
    priors  `[A, 4]` xyxy in input px, by level, row, column and shape; they may leave the image
    """

    logits: Tensor
    deltas: Tensor
    priors: Tensor


class SSDHead(Head[SSDOutputs]):
    """A convolution for classes and one for boxes on every level.

    num_boxes  that each prior predicts: more than one in the frames of a clip
    """

    prefix = "ssd"  # of the names of its losses

    def __init__(self, config: SSDHeadConfig, in_channels: Sequence[int], num_classes: int, num_boxes: int = 1) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.num_boxes = num_boxes
        self.coder = BoxCoder(weights=config.box_weights, clamp=config.clamp)
        self.assigner = BipartiteAssigner(config.fg_threshold, ignored_iof=config.ignored_iof)
        self.priors = PriorGrid(config.priors)
        self.classifier, self.regressor = (
            nn.ModuleList(
                self._predictor(channels, count * width)
                for channels, count in zip(in_channels, self.priors.per_cell, strict=True)
            )
            for width in (num_classes + 1, 4 * num_boxes)
        )

    def _predictor(self, in_channels: int, out_channels: int) -> nn.Module:
        config = self.config
        kernel_size = 1 if config.depthwise else config.kernel_size
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        if not config.depthwise:
            return conv
        depthwise = ConvBlock(
            in_channels,
            in_channels,
            3,
            groups=in_channels,
            act="relu6",
            norm_eps=config.norm_eps,
            norm_momentum=config.norm_momentum,
        )
        return nn.Sequential(depthwise, conv)

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> SSDOutputs:
        logits, deltas = (
            torch.cat([per_anchor(conv(x), width) for conv, x in zip(convs, features, strict=True)], dim=1)
            for convs, width in ((self.classifier, self.num_classes + 1), (self.regressor, 4 * self.num_boxes))
        )
        feature_sizes = [(level.shape[2], level.shape[3]) for level in features]
        return SSDOutputs(logits, deltas, self.priors(feature_sizes, canvas))

    def criterion(self, outputs: SSDOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Section 2.2, eq. 1: both losses are divided by the matched priors of the batch, and are 0 without any."""
        assignments = [self.assigner.assign(outputs.priors, target) for target in targets]
        positives = positives_of(assignments, targets)
        positive = torch.stack([assignment.positive for assignment in assignments])
        background = torch.stack([assignment.background for assignment in assignments])
        labels = torch.zeros_like(positive, dtype=torch.int64)
        labels[positive] = positives.labels + 1
        logits, weights = outputs.logits.float().flatten(0, 1), background_first(self.class_weights)
        losses = F.cross_entropy(logits, labels.flatten(), weights, reduction="none").view_as(labels)
        counted = positive | self._hard_background(losses.detach(), positive, background)
        deltas = self.deltas_of(positives, outputs.priors[positives.prediction], targets)
        box = smooth_l1_loss(outputs.deltas[positive].float(), deltas, self.config.smooth_l1_beta).sum()
        count = positive.sum().clamp(min=1)
        return {
            f"{self.prefix}_class": losses[counted].sum() / count,
            f"{self.prefix}_box": box / self.num_boxes / count,
        }

    def deltas_of(self, positives: Positives, priors: Tensor, targets: Sequence[Target]) -> Tensor:  # noqa: ARG002
        """What the positive predictions should be, `[P, 4 * num_boxes]`, from their priors `[P, 4]`."""
        return self.coder.encode(positives.boxes, priors)

    def _hard_background(self, losses: Tensor, positive: Tensor, background: Tensor) -> Tensor:
        """Bool `[B, A]`: in each image the background priors with the highest loss, `negative_ratio` a positive one."""
        count = (self.config.negative_ratio * positive.sum(dim=1, keepdim=True)).long()
        order = losses.masked_fill(~background, -torch.inf).argsort(dim=1, descending=True)
        rank = torch.empty_like(order)
        rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
        return (rank < count) & background

    def detect(self, outputs: SSDOutputs, windows: Tensor) -> DetectionRows:
        scores = at_least_float32(outputs.logits).softmax(dim=-1)[..., 1:]
        boxes = self.coder.decode(outputs.deltas, outputs.priors.expand_as(outputs.deltas))
        return select_detections(boxes, scores, None, windows, self.config.selection)

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        layer = "classifier.{}.1" if self.config.depthwise else "classifier.{}"
        return {
            layer.format(level): rows(BACKGROUND, range(num_classes), repeat=count)
            for level, count in enumerate(self.priors.per_cell)
        }

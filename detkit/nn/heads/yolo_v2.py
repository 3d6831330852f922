"""YOLOv2's predictions (Redmon and Farhadi, arXiv 1612.08242), with the loss that darknet's region layer computes.

Legend: B images, N predictions of one image, P positives of the batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.nn.assign.positives import positives_of
from detkit.nn.heads.yolo import YOLOHead, YOLOHeadConfig, YOLOOutputs
from detkit.nn.losses import sum_squared_error
from detkit.ops.iou import box_iou
from detkit.structures import Target

VOC_ANCHORS = (  # yolov2-voc.cfg: k-means on VOC
    (1.3221, 1.73145),
    (3.19275, 4.00944),
    (5.05587, 8.09892),
    (9.47112, 4.84053),
    (11.2364, 10.0071),
)


class YOLOv2HeadConfig(YOLOHeadConfig):
    """Defaults: yolov2-voc.cfg."""

    anchors: tuple[tuple[float, float], ...] = VOC_ANCHORS  # width and height in cells
    background_threshold: float = Field(0.6, ge=0, le=1)  # predictions of a higher IoU are not background either
    object_scale: float = Field(5.0, ge=0)
    background_scale: float = Field(1.0, ge=0)
    box_scale: float = Field(1.0, ge=0)
    class_scale: float = Field(1.0, ge=0)
    prior_scale: float = Field(0.01, ge=0)  # pulls all boxes to their anchors at first
    prior_images: int = Field(12_800, ge=0)  # images of this process that "at first" lasts


class YOLOv2Head(YOLOHead):
    """One level, softmax classes."""

    def __init__(
        self, config: YOLOv2HeadConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        anchors = [tuple((w * stride, h * stride) for w, h in config.anchors) for stride in strides]
        super().__init__(config, anchors, in_channels, strides, num_classes)
        self.config = config

    def class_scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)

    def criterion(self, outputs: YOLOOutputs, targets: Sequence[Target], images_seen: int = 0) -> dict[str, Tensor]:
        """Sums over an image, averaged over the batch, as darknet divides its learning rate.

        images_seen  training images of this process before this batch

        The region layer's steps are scale * (target - output), passed back through the sigmoid of x, y and objectness:
        the gradient of half the squared error. The target of a positive's objectness is the IoU of its box.
        """
        config, raw = self.config, outputs.raw.float()
        assignments = self.assign(outputs, targets, config.background_threshold)
        positives = positives_of(assignments, targets)
        positive = positives.image, positives.prediction
        background = torch.stack([assignment.background for assignment in assignments])
        xy, wh, confidence = raw[..., :2].sigmoid(), raw[..., 2:4], raw[..., 4].sigmoid()

        centers, log_sides, weights = self.box_targets(outputs, positives)
        box_error = weights * ((xy[positive] - centers) ** 2 + (wh[positive] - log_sides) ** 2)
        overlap = box_iou(self.boxes(outputs).detach()[positive], positives.boxes, paired=True)
        class_loss = F.cross_entropy(raw[positive][:, 5:], positives.labels, self.class_weights, reduction="sum")
        losses = {
            "yolo_box": config.box_scale * box_error.sum() / 2,
            "yolo_object": config.object_scale * sum_squared_error(confidence[positive], overlap) / 2,
            "yolo_background": config.background_scale * (confidence[background] ** 2).sum() / 2,
            "yolo_class": config.class_scale * class_loss,
        }
        if images_seen < config.prior_images:
            idle = torch.stack([~assignment.positive for assignment in assignments])
            pull = ((xy[idle] - 0.5) ** 2 + wh[idle] ** 2).sum() / 2
            losses["yolo_prior"] = config.prior_scale * pull
        return {name: loss / len(raw) for name, loss in losses.items()}

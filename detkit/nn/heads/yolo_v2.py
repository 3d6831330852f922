"""YOLOv2's predictions (Redmon and Farhadi, arXiv 1612.08242), with the loss that darknet's region layer computes.

Legend: B images, N predictions of one image, M objects of the batch, P predictions that answer for one, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.nn.assign.grid import batch_objects, best_anchors, cells_of, last_of_each
from detkit.nn.heads.yolo import YOLOHead, YOLOHeadConfig, YOLOOutputs
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
    """One level, softmax classes. `images_seen` counts the training images, and is part of the checkpoint."""

    images_seen: Tensor

    def __init__(
        self, config: YOLOv2HeadConfig, in_channels: Sequence[int], strides: Sequence[int], class_names: Sequence[str]
    ) -> None:
        anchors = [tuple((w * stride, h * stride) for w, h in config.anchors) for stride in strides]
        super().__init__(config, anchors, in_channels, strides, class_names)
        self.config = config
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))

    def class_scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)

    def criterion(self, outputs: YOLOOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Sums over an image, averaged over the batch, as darknet divides its learning rate.

        The region layer's steps are scale * (target - output), passed back through the sigmoid of x, y and objectness:
        the gradient of half the squared error. The objectness of an object is learned to be the IoU of its box.
        """
        config, raw = self.config, outputs.raw.float()
        batch, count, _ = raw.shape
        objects = batch_objects(targets)
        slots = objects.image * count + self._predictions(outputs, objects.boxes)
        chosen = last_of_each(slots, batch * count)
        positive, boxes, labels = slots[chosen], objects.boxes[chosen], objects.labels[chosen]
        predicted = self.boxes(outputs).detach()

        flat = raw.flatten(0, 1)
        xy, wh, confidence = flat[:, :2].sigmoid(), flat[:, 2:4], flat[:, 4].sigmoid()
        image_slots = positive % count
        sides = boxes[:, 2:] - boxes[:, :2]
        inside = (boxes[:, :2] + boxes[:, 2:]) / 2 / outputs.strides[image_slots] - outputs.cells[image_slots]
        log_sides = torch.log(sides / outputs.anchors[image_slots])
        weight = 2 - sides.prod(dim=1, keepdim=True) / (outputs.size[0] * outputs.size[1])
        error = (xy[positive] - inside) ** 2 + (wh[positive] - log_sides) ** 2
        overlap = box_iou(predicted.flatten(0, 1)[positive], boxes, paired=True)

        background = (~self._overlapping(predicted, targets)).flatten()
        background[positive] = False
        losses = {
            "yolo_box": config.box_scale * (weight * error).sum() / 2,
            "yolo_object": config.object_scale * ((confidence[positive] - overlap) ** 2).sum() / 2,
            "yolo_background": config.background_scale * (confidence[background] ** 2).sum() / 2,
            "yolo_class": config.class_scale * F.cross_entropy(flat[positive, 5:], labels, reduction="sum"),
        }
        if self.images_seen < config.prior_images:
            idle = torch.ones_like(background)
            idle[positive] = False
            pull = ((xy[idle] - 0.5) ** 2 + wh[idle] ** 2).sum() / 2
            losses["yolo_prior"] = config.prior_scale * pull
        if self.training:
            self.images_seen += batch
        return {name: loss / batch for name, loss in losses.items()}

    def _predictions(self, outputs: YOLOOutputs, boxes: Tensor) -> Tensor:
        """int64 `[M]`: the prediction that answers for each box: the anchor with the most similar shape, in the cell of
        the box's centre."""
        (anchors,), (stride,) = self.anchors, self.strides
        height, width = (side // stride for side in outputs.size)
        cell = cells_of(boxes, stride, (width, height))
        return (cell[:, 1] * width + cell[:, 0]) * len(anchors) + best_anchors(boxes, anchors.to(boxes.device))

    def _overlapping(self, predicted: Tensor, targets: Sequence[Target]) -> Tensor:
        """Bool `[B, N]`: predicted boxes `[B, N, 4]` that overlap an object too well to be background."""
        best = [
            (box_iou(target.objects()[0], boxes) > self.config.background_threshold).any(dim=0)
            for boxes, target in zip(predicted, targets, strict=True)
        ]
        return torch.stack(best)

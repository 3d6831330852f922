"""YOLOv3's predictions (Redmon and Farhadi, arXiv 1804.02767), with the loss that darknet's yolo layer computes.

Legend: B images, L levels, N predictions of one image, M objects of the batch, P predictions that answer for one,
K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.nn.assign.grid import batch_objects, best_anchors, cells_of, last_of_each
from detkit.nn.heads.yolo import YOLOHead, YOLOHeadConfig, YOLOOutputs
from detkit.ops.iou import box_iou
from detkit.structures import Target

Anchors = tuple[tuple[tuple[float, float], ...], ...]
COCO_ANCHORS: Anchors = (  # yolov3.cfg: k-means on COCO, of strides 8, 16, 32
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)


class YOLOv3HeadConfig(YOLOHeadConfig):
    """Defaults: yolov3.cfg."""

    anchors: Anchors = COCO_ANCHORS  # width and height in input px, a list a level, finest first
    ignore_threshold: float = Field(0.7, ge=0, le=1)  # IoU; .7 in yolov3.cfg, .5 in yolov3-voc.cfg and the paper
    prior: float = Field(0.01, gt=0, lt=1)  # objectness of a fresh head (RetinaNet's; darknet starts at .5)


class YOLOv3Head(YOLOHead):
    """Logistic classes: an object may be of several."""

    def __init__(
        self, config: YOLOv3HeadConfig, in_channels: Sequence[int], strides: Sequence[int], class_names: Sequence[str]
    ) -> None:
        super().__init__(config, config.anchors, in_channels, strides, class_names)
        self.config = config
        for conv in self.predict:
            assert isinstance(conv.bias, Tensor)
            bias = conv.bias.detach().view(-1, 5 + len(class_names))
            bias[:, 4] = math.log(config.prior / (1 - config.prior))

    def class_scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def criterion(self, outputs: YOLOOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Sums over an image, averaged over the batch, as darknet divides its learning rate (section 2.1).

        The yolo layer hands `target - sigmoid` to the logits of x, y, objectness and class: the gradient of binary
        cross-entropy, for x and y with a soft target. Width and height have a squared error. Boxes weigh 2 - area.
        """
        raw = outputs.raw.float()
        batch, count, _ = raw.shape
        objects = batch_objects(targets)
        slots = objects.image * count + self._predictions(outputs, objects.boxes)
        chosen = last_of_each(slots, batch * count)
        positive = slots[chosen]

        flat = raw.flatten(0, 1)
        boxes, image_slots = objects.boxes[chosen], positive % count
        anchors, strides, cells = outputs.anchors[image_slots], outputs.strides[image_slots], outputs.cells[image_slots]
        sides = boxes[:, 2:] - boxes[:, :2]
        inside = (boxes[:, :2] + boxes[:, 2:]) / 2 / strides - cells
        weight = 2 - sides.prod(dim=1, keepdim=True) / (outputs.size[0] * outputs.size[1])
        xy = F.binary_cross_entropy_with_logits(flat[positive, :2], inside, weight.expand(-1, 2), reduction="sum")
        wh = (weight * (flat[positive, 2:4] - torch.log(sides / anchors)) ** 2).sum() / 2

        wanted = torch.zeros(batch * count, device=raw.device)
        wanted[positive] = 1
        counted = ~self._ignored(outputs, targets).flatten()
        counted[positive] = True
        objectness = F.binary_cross_entropy_with_logits(flat[counted, 4], wanted[counted], reduction="sum")

        # every object that falls on a prediction adds its class, also where another's box is learned
        classes = torch.zeros(batch * count, len(self.class_names), device=raw.device)
        classes[slots, objects.labels] = 1
        class_loss = F.binary_cross_entropy_with_logits(flat[positive, 5:], classes[positive], reduction="sum")
        losses = {"yolo_xy": xy, "yolo_wh": wh, "yolo_object": objectness, "yolo_class": class_loss}
        return {name: loss / batch for name, loss in losses.items()}

    def _predictions(self, outputs: YOLOOutputs, boxes: Tensor) -> Tensor:
        """int64 `[M]`: the prediction that answers for each box: the anchor of all levels with the most similar shape,
        in the cell of the box's centre."""
        device = boxes.device
        best = best_anchors(boxes, torch.cat(self.anchors).to(device))
        per_level = torch.tensor([len(level) for level in self.anchors], device=device)
        level = torch.repeat_interleave(torch.arange(len(per_level), device=device), per_level)[best]
        anchor = best - (per_level.cumsum(0) - per_level)[level]
        strides = torch.tensor(self.strides, device=device)[level]
        height, width = outputs.size
        size = torch.stack([width // strides, height // strides], dim=1)
        cell = cells_of(boxes, strides[:, None], size)
        start = torch.tensor(outputs.starts, device=device)[level]
        return start + (cell[:, 1] * size[:, 0] + cell[:, 0]) * per_level[level] + anchor

    @torch.no_grad()
    def _ignored(self, outputs: YOLOOutputs, targets: Sequence[Target]) -> Tensor:
        """Bool `[B, N]`: predicted boxes that overlap an object so well that they are not background either."""
        ignored = []
        for boxes, target in zip(self.boxes(outputs), targets, strict=True):
            iou = box_iou(target.objects()[0], boxes)
            ignored.append((iou > self.config.ignore_threshold).any(dim=0))
        return torch.stack(ignored)

"""YOLOv3's predictions (Redmon and Farhadi, arXiv 1804.02767), with the loss that darknet's yolo layer computes.

Legend: B images, L levels, N predictions of one image, M objects of one image, P positives of the batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.nn.assign.grid import AnchorAssignment
from detkit.nn.assign.positives import Positives, positives_of
from detkit.nn.heads.yolo import YOLOHead, YOLOHeadConfig, YOLOOutputs
from detkit.structures import Target

Anchors = tuple[tuple[tuple[float, float], ...], ...]
COCO_ANCHORS: Anchors = (  # yolov3.cfg: k-means on COCO, of strides 8, 16, 32
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)


class YOLOv3HeadConfig(YOLOHeadConfig):
    """Defaults: yolov3.cfg."""

    anchors: Anchors = COCO_ANCHORS  # width and height in input px, a list for each level, finest first
    ignore_threshold: float = Field(0.7, ge=0, le=1)  # predictions of a higher IoU with an object are not background;
    # .7 in yolov3.cfg, .5 in yolov3-voc.cfg and the paper
    prior: float = Field(0.01, gt=0, lt=1)  # objectness of a fresh head (RetinaNet's; darknet starts at .5)


class YOLOv3Head(YOLOHead):
    """Logistic classes: an object may be of several."""

    def __init__(
        self, config: YOLOv3HeadConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        super().__init__(config, config.anchors, in_channels, strides, num_classes)
        self.config = config
        for conv in self.predict:
            assert isinstance(conv.bias, Tensor)
            bias = conv.bias.detach().view(-1, 5 + num_classes)
            bias[:, 4] = math.log(config.prior / (1 - config.prior))

    def class_scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def criterion(self, outputs: YOLOOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Sums over an image, averaged over the batch, as darknet divides its learning rate (section 2.1).

        The yolo layer hands `target - sigmoid` to the logits of x, y, objectness and class: the gradient of binary
        cross-entropy, for x and y with a soft target. Width and height have a squared error. Boxes weigh 2 - area.
        """
        raw = outputs.raw.float()
        assignments = self.assign(outputs, targets, self.config.ignore_threshold)
        positives = positives_of(assignments, targets)
        predicted = raw[positives.image, positives.prediction]  # [P, 5 + K]

        centers, log_sides, weights = self.box_targets(outputs, positives)
        xy = F.binary_cross_entropy_with_logits(predicted[:, :2], centers, weights.expand(-1, 2), reduction="sum")
        wh = (weights * (predicted[:, 2:4] - log_sides) ** 2).sum() / 2

        positive = torch.stack([assignment.positive for assignment in assignments])
        counted = positive | torch.stack([assignment.background for assignment in assignments])
        objectness = F.binary_cross_entropy_with_logits(
            raw[..., 4][counted], positive[counted].to(raw.dtype), reduction="sum"
        )
        class_targets = self._class_targets(assignments, positives, targets)
        # All K logits of a prediction have the weight of the class whose box it learns.
        factors = None if self.class_weights is None else self.class_weights[positives.labels, None]
        classes = F.binary_cross_entropy_with_logits(predicted[:, 5:], class_targets, factors, reduction="sum")
        losses = {"yolo_xy": xy, "yolo_wh": wh, "yolo_object": objectness, "yolo_class": classes}
        return {name: loss / len(raw) for name, loss in losses.items()}

    def _class_targets(
        self, assignments: Sequence[AnchorAssignment], positives: Positives, targets: Sequence[Target]
    ) -> Tensor:
        """`[P, K]` of 0 and 1: a positive has the classes of all objects that fall on it, also of those whose box it
        does not learn."""
        labels = torch.cat([target.not_ignored().labels for target in targets])
        count = len(assignments[0].index)
        place = torch.cat([assignment.predictions + i * count for i, assignment in enumerate(assignments)])
        row = labels.new_zeros(count * len(targets))  # of the positive at each prediction
        row[positives.image * count + positives.prediction] = torch.arange(len(positives.image), device=row.device)
        classes = torch.zeros(len(positives.image), self.num_classes, device=labels.device)
        classes[row[place], labels] = 1
        return classes

"""YOLOv7's predictions (Wang, Bochkovskiy, Liao, arXiv 2207.02696): YOLOv5's with implicit knowledge, and trained on
those of YOLOv5's candidates that predict an object best.

Legend: B images, N predictions of one image over all levels, P pairs of a prediction and an object, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.assign.shape_ratio import Level
from detkit.nn.assign.sim_ota import match_cheapest, matching_cost
from detkit.nn.csp import conv
from detkit.nn.heads.yolo import YOLOOutputs
from detkit.nn.heads.yolo_v3 import Anchors
from detkit.nn.heads.yolo_v4 import V4_ANCHORS
from detkit.nn.heads.yolo_v5 import YOLOv5Head, YOLOv5HeadConfig, YOLOv5SelectionConfig
from detkit.nn.reparam import RepConv
from detkit.ops.iou import box_iou
from detkit.structures import Size, Target

INIT_STD = 0.02  # of the implicit knowledge


class YOLOv7SelectionConfig(YOLOv5SelectionConfig):
    """Defaults: YOLOv7's evaluation."""

    nms_threshold: float | None = Field(0.65, ge=0, le=1)


class YOLOv7HeadConfig(YOLOv5HeadConfig):
    """Defaults: yolov7's."""

    anchors: Anchors = V4_ANCHORS
    block: str = Field(
        "rep", pattern="^(rep|conv|leaky)$"
    )  # the last 3x3: two added up, or one (x), or with leaky (tiny)
    implicit: bool = True  # learned numbers added to the features and multiplied with the predictions
    class_weight: float = Field(0.3, ge=0)
    object_weight: float = Field(0.7, ge=0)
    top_k: int = Field(10, ge=1)  # candidates whose IoUs with an object, added, are the number that answer for it
    iou_cost: float = Field(3.0, ge=0)  # factor of -log IoU beside the cross-entropy
    selection: YOLOv7SelectionConfig = YOLOv7SelectionConfig()


class YOLOv7Head(YOLOv5Head):
    """A 3x3 convolution to twice the channels, and a 1x1 that predicts ("IDetect")."""

    config: YOLOv7HeadConfig

    def __init__(
        self, config: YOLOv7HeadConfig, in_channels: Sequence[int], strides: Sequence[int], num_classes: int
    ) -> None:
        wide = [2 * channels for channels in in_channels]
        super().__init__(config, wide, strides, num_classes)
        self.convs = nn.ModuleList(_block(config.block, channels) for channels in in_channels)
        outputs = [len(anchors) * (5 + num_classes) for anchors in config.anchors]
        if config.implicit:
            self.added = nn.ParameterList(torch.randn(channels, 1, 1) * INIT_STD for channels in wide)
            self.factors = nn.ParameterList(1 + torch.randn(channels, 1, 1) * INIT_STD for channels in outputs)

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> YOLOOutputs:
        return super().forward([block(level) for block, level in zip(self.convs, features, strict=True)], sizes, canvas)

    @override
    def predict_level(self, number: int, level: Tensor) -> Tensor:
        if not self.config.implicit:
            return super().predict_level(number, level)
        predicted: Tensor = self.factors[number] * super().predict_level(number, level + self.added[number])
        return predicted

    @torch.no_grad()
    def deployed(self) -> YOLOv7Head:
        """The same without implicit knowledge: m (W (x + a) + b) is (m W) x + m (W a + b)."""
        if not self.config.implicit:
            return self
        head = copy.copy(self)
        head._modules = {name: part for name, part in self._modules.items() if name not in ("added", "factors")}
        head.config = self.config.model_copy(update={"implicit": False})
        head.predict = copy.deepcopy(self.predict)
        for predict, added, factor in zip(head.predict, self.added, self.factors, strict=True):
            assert isinstance(predict, nn.Conv2d)
            assert predict.bias is not None
            predict.bias.add_(predict.weight[:, :, 0, 0] @ added[:, 0, 0]).mul_(factor[:, 0, 0])
            predict.weight.mul_(factor[..., None])
        return head

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        predicted = super().class_rows(num_classes)
        factors = {name.replace("predict", "factors"): rows for name, rows in predicted.items()}
        return predicted | factors if self.config.implicit else predicted

    @override
    @torch.no_grad()
    def pairs(self, outputs: YOLOOutputs, levels: Sequence[Level], image: int, target: Target) -> tuple[Tensor, Tensor]:
        """The cheapest of YOLOv5's candidates, as many as overlap the object well (SimOTA over all candidates)."""
        rows, objects = super().pairs(outputs, levels, image, target)
        if not len(rows):
            return rows, objects
        candidates, truth = torch.unique(rows), target.not_ignored()
        raw = outputs.raw[image, candidates].float()
        iou = box_iou(truth.boxes, self.decode(outputs, raw[:, :4], candidates))
        cost = matching_cost(iou, raw[:, 5:], raw[:, 4], truth.labels, self.config.iou_cost)
        match, positive = match_cheapest(cost, iou, self.config.top_k)
        return candidates[positive], match[positive]


def _block(name: str, channels: int) -> nn.Module:
    if name == "rep":
        return RepConv(channels, 2 * channels)
    return conv(channels, 2 * channels, 3, act="leaky" if name == "leaky" else "swish")

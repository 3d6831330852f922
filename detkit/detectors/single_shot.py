"""One pass from pixels to predictions: trunk, neck, head. SSD and the YOLOs differ only in these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from detkit.detectors.detector import Detector
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.input import ImageInput
from detkit.structures import Batch, Detections, ImageInfo, Target


class SingleShotDetector(Detector):
    """`head(features, (h, w) of the canvas)` makes the outputs, and has their criterion and postprocess."""

    def __init__(
        self,
        backbone: StagedBackbone,
        neck: nn.Module | None,
        head: Any,
        image_input: ImageInput,
        class_names: Sequence[str],
    ) -> None:
        super().__init__(image_input, class_names)
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, batch: Batch) -> Any:
        images = self.input(batch)
        features = self.backbone(images)
        if self.neck is not None:
            features = self.neck(features)
        return self.head(features, (images.shape[2], images.shape[3]))

    def criterion(self, outputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.head.criterion(outputs, targets)
        return losses

    def postprocess(self, outputs: Any, infos: Sequence[ImageInfo]) -> list[Detections]:
        detections: list[Detections] = self.head.postprocess(outputs, infos)
        return detections

"""The R-CNN lineage as one pipeline: candidate regions, features of each, a head that decides.

Sliding windows, R-CNN, Fast and Faster R-CNN differ in two choices: where the regions come from (windows, proposals
that come with the images, an RPN), and how their features are made (the crop through the network, or pooled from one
map).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from detkit.detectors.detector import Detector
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.heads.regions import RegionHead, RoISamples
from detkit.nn.input import ImageInput
from detkit.nn.necks.fpn import FPN
from detkit.structures import Batch, Detections, ImageInfo, Target


def check_pooled_levels(levels: Sequence[int], neck: object | None, pool: str) -> None:
    """Raises ValueError if regions cannot be pooled from these levels of a backbone."""
    if neck is None and len(levels) > 1:
        raise ValueError(f"backbone.levels: {len(levels)} levels of different widths need a neck, found neck: null")
    if pool == "pool" and len(levels) > 1:
        raise ValueError(
            f"roi.pool: RoIPool reads one level, found {len(levels)}; use align, or one of backbone.levels"
        )


class RegionBasedDetector(Detector):
    """`roi` samples regions in training, and has the criterion and postprocess of what it decides."""

    def __init__(
        self,
        backbone: StagedBackbone,
        neck: FPN | None,
        roi: RegionHead,
        image_input: ImageInput,
        class_names: Sequence[str],
    ) -> None:
        super().__init__(image_input, class_names)
        self.backbone = backbone
        self.neck = neck
        self.roi = roi

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.backbone(images)
        return self.neck(levels) if self.neck is not None else levels

    def chosen(self, proposals: Sequence[Tensor] | None, batch: Batch) -> tuple[Sequence[Tensor], RoISamples | None]:
        """The regions to look at: in training a sample of the proposals and objects, with what each should become."""
        if proposals is None:
            raise ValueError(f"a batch without proposals; {type(self).__name__} makes none itself")
        if not self.training:
            return proposals, None
        if batch.targets is None:
            raise ValueError("a batch without targets in training mode; call detector.eval() to detect")
        return self.roi.sample(proposals, batch.targets)

    def criterion(self, outputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        return self.roi.criterion(outputs)

    def postprocess(self, outputs: Any, infos: Sequence[ImageInfo]) -> list[Detections]:
        return self.roi.postprocess(outputs, infos)

"""One pass from pixels to predictions: backbone, neck, head. SSD, the YOLOs, RetinaNet and DETR differ in these."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import override

from detkit.detectors.detector import Detector, check_num_classes
from detkit.nn.backbones.staged import StagedBackbone, consecutive
from detkit.nn.heads.dense import TowerConfig
from detkit.nn.heads.head import Head
from detkit.nn.input import ImageInput
from detkit.nn.necks.fpn import FPNConfig
from detkit.nn.outputs import OutputsT
from detkit.nn.selection import DetectionRows
from detkit.structures import Categories, Target


def check_pyramid(strides: Sequence[int], neck: FPNConfig, tower: TowerConfig) -> int:
    """The number of levels of a pyramid on backbone levels of these strides.

    Raises ValueError if it has a gap, or if the norms of `tower` cannot divide its channels.
    """
    if not consecutive(strides):
        raise ValueError(f"backbone.strides: expected no gap between them, found {list(strides)}")
    if tower.groups and neck.out_channels % tower.groups:
        raise ValueError(
            f"head.tower.groups: expected a divisor of neck.out_channels, {neck.out_channels}, found {tower.groups}"
        )
    return len(strides) + neck.num_extra_levels


class SingleShotDetector(Detector[OutputsT]):
    def __init__(
        self,
        backbone: StagedBackbone,
        neck: nn.Module | None,
        head: Head[OutputsT],
        image_input: ImageInput,
        categories: Categories,
    ) -> None:
        super().__init__(image_input, categories)
        check_num_classes(head.num_classes, categories)
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def network(self, images: Tensor, sizes: Tensor) -> OutputsT:
        outputs: OutputsT = self.head(self.features(images), sizes, (images.shape[-2], images.shape[-1]))
        return outputs

    def features(self, images: Tensor) -> list[Tensor]:
        """The levels that the head reads, finest first."""
        features: list[Tensor] = self.backbone(images)
        return features if self.neck is None else self.neck(features)

    def criterion(self, outputs: OutputsT, targets: Sequence[Target]) -> dict[str, Tensor]:
        return self.head.criterion(outputs, targets)

    @override
    def set_class_weights(self, weights: Tensor) -> None:
        self.head.class_weights = weights

    def detect(self, outputs: OutputsT, sizes: Tensor) -> DetectionRows:
        return self.head.detect(outputs, self.input.windows(sizes))

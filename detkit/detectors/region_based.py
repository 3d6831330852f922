"""The R-CNN lineage as one pipeline: candidate regions, features of each, a head that classifies and refines them.

Sliding windows, R-CNN, Fast and Faster R-CNN differ in two choices: where the regions come from (windows, proposals
that come with the images, an RPN), and how their features are computed (the crop through the network, or pooled from
one map).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor
from typing_extensions import override

from detkit.detectors.detector import Detector, check_num_classes
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.heads.regions import RegionHead, RegionTargets
from detkit.nn.input import ImageInput
from detkit.nn.necks.neck import Neck
from detkit.nn.outputs import register_outputs
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows
from detkit.structures import Batch, Categories, Target

HeadOutputsT = TypeVar("HeadOutputsT")


@register_outputs
@dataclass(frozen=True, eq=False)
class RegionBasedOutputs(Generic[HeadOutputsT]):
    """
    roi         outputs of the region head
    detections  in evaluation, so that further branches can read the final boxes; None when training
    """

    roi: HeadOutputsT
    detections: DetectionRows | None


# Python has no type for "these outputs, with the outputs of that head": each detector names its head.
RegionOutputsT = TypeVar("RegionOutputsT", bound=RegionBasedOutputs[Any])


class RegionBasedDetector(Detector[RegionOutputsT]):
    """`roi` samples regions in training, and has the criterion and the detections of its outputs."""

    roi: RegionHead[Any]

    def __init__(
        self,
        backbone: StagedBackbone,
        neck: Neck | None,
        roi: RegionHead[Any],
        image_input: ImageInput,
        categories: Categories,
    ) -> None:
        super().__init__(image_input, categories)
        check_num_classes(roi.num_classes, categories)
        self.backbone = backbone
        self.neck = neck
        self.roi = roi

    def forward(self, batch: Batch) -> RegionOutputsT:
        sizes = batch.sizes()
        images = self.input(batch.images, sizes)
        proposals = None if batch.proposals is None else Regions.from_list(batch.proposals)
        return self.network(images, sizes, proposals, batch.targets if self.training else None)

    @abstractmethod
    def network(
        self,
        images: Tensor,
        sizes: Tensor,
        proposals: Regions | None = None,
        targets: Sequence[Target] | None = None,
    ) -> RegionOutputsT:
        """
        images     float `[B, 3, H, W]`, normalised by `input`
        sizes      int64 `[B, 2]`: (h, w) of each picture on its canvas
        proposals  for detectors that are given them
        targets    B `Target`, needed in training mode, when regions are sampled
        """

    def features(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.backbone(images)
        return self.neck(levels) if self.neck is not None else levels

    def regions_with_targets(
        self, proposals: Regions | None, targets: Sequence[Target] | None
    ) -> tuple[Regions, RegionTargets | None]:
        """In training a sample of the proposals and objects with its targets; in evaluation all proposals and None."""
        if proposals is None:
            raise ValueError(f"expected proposals in the batch: {type(self).__name__} has no network that proposes")
        if not self.training:
            return proposals.compact(), None
        return self.roi.sample(proposals, required_targets(targets))

    def detect_in_evaluation(self, roi: object, sizes: Tensor) -> DetectionRows | None:
        return None if self.training else self.roi.detect(roi, self.input.windows(sizes))

    @override
    def criterion(self, outputs: RegionOutputsT, targets: Sequence[Target]) -> dict[str, Tensor]:
        return self.roi.criterion(outputs.roi)

    @override
    def set_class_weights(self, weights: Tensor) -> None:
        self.roi.class_weights = weights

    @override
    def detect(self, outputs: RegionOutputsT, sizes: Tensor) -> DetectionRows:
        if outputs.detections is None:
            raise ValueError(
                "no detections: the outputs were computed in training mode; call detector.eval() to detect"
            )
        return outputs.detections


def check_pooled_levels(strides: Sequence[int], neck: object | None, pool: str) -> None:
    """Raises ValueError if regions cannot be pooled from backbone levels of these strides."""
    if neck is None and len(strides) > 1:
        raise ValueError(f"backbone.strides: {len(strides)} levels of different widths need a neck, found neck: null")
    if pool == "pool" and len(strides) > 1:
        raise ValueError(
            f"roi.pool: RoIPool reads one level, found {len(strides)}; use align, or one of backbone.strides"
        )


def check_one_level(strides: Sequence[int]) -> None:
    """Raises ValueError unless the backbone has one level."""
    if len(strides) != 1:
        raise ValueError(f"backbone.strides: expected one level, found {list(strides)}")


def required_targets(targets: Sequence[Target] | None) -> Sequence[Target]:
    if targets is None:
        raise ValueError("a batch without targets in training mode; call detector.eval() to detect")
    return targets

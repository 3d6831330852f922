"""Cascade R-CNN (Cai and Vasconcelos, arXiv 1712.00726): Faster R-CNN with a region head of several stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from typing_extensions import override

from detkit.detectors.faster_rcnn import FasterRCNN, TwoStageConfig, build_two_stage
from detkit.nn.backbones import load_classifier
from detkit.nn.heads.cascade import CascadeConfig, CascadeHead, CascadeOutputs
from detkit.nn.heads.regions import RegionTargets
from detkit.nn.proposals.regions import Regions
from detkit.structures import Categories, Target


class CascadeRCNNConfig(TwoStageConfig):
    """Defaults: Detectron2's three stages, on torchvision's pyramid and proposals."""

    name: Literal["cascade_rcnn"] = "cascade_rcnn"
    roi: CascadeConfig = CascadeConfig()


class CascadeRCNN(FasterRCNN):
    """Proposals are sampled for the first stage; each later one takes all boxes of the one before."""

    roi: CascadeHead

    @override
    def classify(
        self,
        features: list[Tensor],
        regions: Regions,
        region_targets: RegionTargets | None,
        targets: Sequence[Target] | None,
        sizes: Tensor,
    ) -> CascadeOutputs:
        outputs: CascadeOutputs = self.roi(features, regions, self.input.windows(sizes), region_targets, targets)
        return outputs

    @override
    def set_class_weights(self, weights: Tensor) -> None:
        for stage in self.roi.heads():
            stage.class_weights = weights


def build_cascade_rcnn(config: CascadeRCNNConfig, categories: Categories) -> CascadeRCNN:
    detector = build_two_stage(config, categories, CascadeRCNN, CascadeHead)
    assert isinstance(detector, CascadeRCNN)
    for stage in detector.roi.heads():
        note = load_classifier(config.backbone, stage.hidden)
        if note and note not in detector.notes:
            detector.notes.append(note)
    return detector

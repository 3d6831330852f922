"""Mask R-CNN (He, Gkioxari, Dollar, Girshick, arXiv 1703.06870): Faster R-CNN with a branch that learns masks."""

from __future__ import annotations

from typing import Literal

from detkit.detectors.faster_rcnn import FasterRCNN, TwoStageConfig, build_faster_rcnn
from detkit.nn.heads.mask import MaskConfig
from detkit.structures import Categories


class MaskRCNNConfig(TwoStageConfig):
    """Defaults: torchvision's `maskrcnn_resnet50_fpn`."""

    name: Literal["mask_rcnn"] = "mask_rcnn"
    mask: MaskConfig = MaskConfig()


class MaskRCNN(FasterRCNN):
    """Each detection has masks, which the branch sees in its final box."""


def build_mask_rcnn(config: MaskRCNNConfig, categories: Categories) -> FasterRCNN:
    return build_faster_rcnn(config, categories, MaskRCNN)

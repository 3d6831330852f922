"""Mask R-CNN (He, Gkioxari, Dollar, Girshick, arXiv 1703.06870): Faster R-CNN with a branch that learns masks."""

from __future__ import annotations

from typing import Literal

from detkit.detectors.faster_rcnn import TwoStageConfig
from detkit.nn.heads.mask import MaskConfig


class MaskRCNNConfig(TwoStageConfig):
    """Defaults: torchvision's `maskrcnn_resnet50_fpn`."""

    name: Literal["mask_rcnn"] = "mask_rcnn"
    mask: MaskConfig = MaskConfig()

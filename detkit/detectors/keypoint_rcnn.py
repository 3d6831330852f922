"""Keypoint R-CNN (He, Gkioxari, Dollar, Girshick, arXiv 1703.06870, section 5): Faster R-CNN with a branch that learns
keypoints."""

from __future__ import annotations

from typing import Literal

from detkit.detectors.faster_rcnn import FasterRCNN, TwoStageConfig, build_faster_rcnn
from detkit.nn.heads.keypoint import KeypointConfig
from detkit.structures import Categories


class KeypointRCNNConfig(TwoStageConfig):
    """Defaults: torchvision's `keypointrcnn_resnet50_fpn`. How many keypoints there are comes from the data."""

    name: Literal["keypoint_rcnn"] = "keypoint_rcnn"
    keypoint: KeypointConfig = KeypointConfig()


class KeypointRCNN(FasterRCNN):
    """Each detection has keypoints, which the branch sees in its final box."""


def build_keypoint_rcnn(config: KeypointRCNNConfig, categories: Categories) -> FasterRCNN:
    return build_faster_rcnn(config, categories, KeypointRCNN)

"""A detector from its configuration. Adding one: a line in the union, a line in the `match`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detkit.detectors.detector import Detector
from detkit.detectors.faster_rcnn import FasterRCNNConfig, build_faster_rcnn

DetectorConfig = FasterRCNNConfig  # becomes a union discriminated by `name` with the second detector


def build_detector(config: DetectorConfig, class_names: Sequence[str]) -> Detector:
    """The detector in the memory format that convolutions run fastest in, on the CPU and on CUDA."""
    match config:
        case FasterRCNNConfig():
            detector = build_faster_rcnn(config, class_names)
    return detector.to(memory_format=torch.channels_last)

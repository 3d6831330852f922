"""A detector from its configuration. Adding one: a line in the union, a line in the `match`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from detkit.detectors.detector import Detector
from detkit.detectors.detr import DETRConfig, build_detr
from detkit.detectors.fast_rcnn import FastRCNNConfig, build_fast_rcnn
from detkit.detectors.faster_rcnn import FasterRCNNConfig, build_faster_rcnn
from detkit.detectors.rcnn import RCNNConfig, build_rcnn
from detkit.detectors.sliding_window import SlidingWindowConfig, build_sliding_window
from detkit.detectors.ssd import SSDConfig, build_ssd
from detkit.detectors.yolov1 import YOLOv1Config, build_yolov1
from detkit.detectors.yolov2 import YOLOv2Config, build_yolov2
from detkit.detectors.yolov3 import YOLOv3Config, build_yolov3
from detkit.nn.convolution import accelerate

DetectorConfig = Annotated[
    SlidingWindowConfig
    | RCNNConfig
    | FastRCNNConfig
    | FasterRCNNConfig
    | SSDConfig
    | YOLOv1Config
    | YOLOv2Config
    | YOLOv3Config
    | DETRConfig,
    Field(discriminator="name"),
]


def build_detector(config: DetectorConfig, class_names: Sequence[str]) -> Detector:
    """The detector with its convolutions as they run fastest; see `accelerate`."""
    match config:
        case SlidingWindowConfig():
            detector: Detector = build_sliding_window(config, class_names)
        case RCNNConfig():
            detector = build_rcnn(config, class_names)
        case FastRCNNConfig():
            detector = build_fast_rcnn(config, class_names)
        case FasterRCNNConfig():
            detector = build_faster_rcnn(config, class_names)
        case SSDConfig():
            detector = build_ssd(config, class_names)
        case YOLOv1Config():
            detector = build_yolov1(config, class_names)
        case YOLOv2Config():
            detector = build_yolov2(config, class_names)
        case YOLOv3Config():
            detector = build_yolov3(config, class_names)
        case DETRConfig():
            detector = build_detr(config, class_names)
    accelerate(detector)
    return detector

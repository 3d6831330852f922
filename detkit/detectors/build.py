"""A detector from its configuration. Adding one: a line in the union, a line in the `match`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from detkit.detectors.atss import ATSSConfig, build_atss
from detkit.detectors.cascade_rcnn import CascadeRCNNConfig, build_cascade_rcnn
from detkit.detectors.deformable_detr import DeformableDETRConfig, build_deformable_detr
from detkit.detectors.detector import AnyDetector
from detkit.detectors.detr import DETRConfig, build_detr
from detkit.detectors.fast_rcnn import FastRCNNConfig, build_fast_rcnn
from detkit.detectors.faster_rcnn import FasterRCNNConfig, TwoStageConfig, build_faster_rcnn
from detkit.detectors.fcos import FCOSConfig, build_fcos
from detkit.detectors.keypoint_rcnn import KeypointRCNNConfig, build_keypoint_rcnn
from detkit.detectors.mask_rcnn import MaskRCNNConfig, build_mask_rcnn
from detkit.detectors.rcnn import RCNNConfig, build_rcnn
from detkit.detectors.retinanet import RetinaNetConfig, build_retinanet
from detkit.detectors.sliding_window import SlidingWindowConfig, build_sliding_window
from detkit.detectors.ssd import SSDConfig, build_ssd
from detkit.detectors.yolov1 import YOLOv1Config, build_yolov1
from detkit.detectors.yolov2 import YOLOv2Config, build_yolov2
from detkit.detectors.yolov3 import YOLOv3Config, build_yolov3
from detkit.detectors.yolov4 import YOLOv4Config, build_yolov4
from detkit.detectors.yolov5 import YOLOv5Config, build_yolov5
from detkit.detectors.yolov6 import YOLOv6Config, build_yolov6
from detkit.detectors.yolov7 import YOLOv7Config, build_yolov7
from detkit.detectors.yolox import YOLOXConfig, build_yolox
from detkit.structures import Categories, Column

DetectorConfig = Annotated[
    SlidingWindowConfig
    | RCNNConfig
    | FastRCNNConfig
    | FasterRCNNConfig
    | CascadeRCNNConfig
    | MaskRCNNConfig
    | KeypointRCNNConfig
    | SSDConfig
    | RetinaNetConfig
    | FCOSConfig
    | ATSSConfig
    | YOLOv1Config
    | YOLOv2Config
    | YOLOv3Config
    | YOLOv4Config
    | YOLOv5Config
    | YOLOv6Config
    | YOLOv7Config
    | YOLOXConfig
    | DETRConfig
    | DeformableDETRConfig,
    Field(discriminator="name"),
]


def learned_columns(config: DetectorConfig) -> tuple[Column, ...]:
    """What of a data set a detector learns beside boxes."""
    return config.columns if isinstance(config, TwoStageConfig) else ()


def build_detector(config: DetectorConfig, categories: Categories) -> AnyDetector:
    """The detector in plain modules; see `detkit.accelerate` for faster ones."""
    match config:
        case SlidingWindowConfig():
            detector: AnyDetector = build_sliding_window(config, categories)
        case RCNNConfig():
            detector = build_rcnn(config, categories)
        case FastRCNNConfig():
            detector = build_fast_rcnn(config, categories)
        case FasterRCNNConfig():
            detector = build_faster_rcnn(config, categories)
        case MaskRCNNConfig():
            detector = build_mask_rcnn(config, categories)
        case KeypointRCNNConfig():
            detector = build_keypoint_rcnn(config, categories)
        case CascadeRCNNConfig():
            detector = build_cascade_rcnn(config, categories)
        case SSDConfig():
            detector = build_ssd(config, categories)
        case RetinaNetConfig():
            detector = build_retinanet(config, categories)
        case FCOSConfig():
            detector = build_fcos(config, categories)
        case ATSSConfig():
            detector = build_atss(config, categories)
        case YOLOv1Config():
            detector = build_yolov1(config, categories)
        case YOLOv2Config():
            detector = build_yolov2(config, categories)
        case YOLOv3Config():
            detector = build_yolov3(config, categories)
        case YOLOv4Config():
            detector = build_yolov4(config, categories)
        case YOLOv5Config():
            detector = build_yolov5(config, categories)
        case YOLOv6Config():
            detector = build_yolov6(config, categories)
        case YOLOv7Config():
            detector = build_yolov7(config, categories)
        case YOLOXConfig():
            detector = build_yolox(config, categories)
        case DETRConfig():
            detector = build_detr(config, categories)
        case DeformableDETRConfig():
            detector = build_deformable_detr(config, categories)
    return detector

"""A detector from its configuration. Adding one: a line in the union, a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from detkit.detectors.act import ACTConfig, build_act
from detkit.detectors.atss import ATSSConfig, build_atss
from detkit.detectors.cascade_rcnn import CascadeRCNNConfig, build_cascade_rcnn
from detkit.detectors.d_fine import DFINEConfig, build_d_fine
from detkit.detectors.deformable_detr import DeformableDETRConfig, build_deformable_detr
from detkit.detectors.detector import AnyDetector
from detkit.detectors.detr import DETRConfig, build_detr
from detkit.detectors.diffusiondet import DiffusionDetConfig, build_diffusiondet
from detkit.detectors.dino import DINOConfig, build_dino
from detkit.detectors.fast_rcnn import FastRCNNConfig, build_fast_rcnn
from detkit.detectors.faster_rcnn import FasterRCNNConfig, TwoStageConfig, build_faster_rcnn
from detkit.detectors.fcos import FCOSConfig, build_fcos
from detkit.detectors.keypoint_rcnn import KeypointRCNNConfig, build_keypoint_rcnn
from detkit.detectors.lw_detr import LWDETRConfig, build_lw_detr
from detkit.detectors.mask_rcnn import MaskRCNNConfig, build_mask_rcnn
from detkit.detectors.rcnn import RCNNConfig, build_rcnn
from detkit.detectors.retinanet import RetinaNetConfig, build_retinanet
from detkit.detectors.rt_detr import RTDETRConfig, build_rt_detr
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
from detkit.nn.backbones.time_pooling import ClipStagedConfig
from detkit.structures import Categories, Clip, Column

DetectorConfig = Annotated[
    SlidingWindowConfig
    | RCNNConfig
    | FastRCNNConfig
    | FasterRCNNConfig
    | CascadeRCNNConfig
    | MaskRCNNConfig
    | KeypointRCNNConfig
    | SSDConfig
    | ACTConfig
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
    | DeformableDETRConfig
    | DINOConfig
    | RTDETRConfig
    | DFINEConfig
    | LWDETRConfig
    | DiffusionDetConfig,
    Field(discriminator="name"),
]

BUILDERS: dict[type[Any], Callable[[Any, Categories], AnyDetector]] = {
    SlidingWindowConfig: build_sliding_window,
    RCNNConfig: build_rcnn,
    FastRCNNConfig: build_fast_rcnn,
    FasterRCNNConfig: build_faster_rcnn,
    CascadeRCNNConfig: build_cascade_rcnn,
    MaskRCNNConfig: build_mask_rcnn,
    KeypointRCNNConfig: build_keypoint_rcnn,
    SSDConfig: build_ssd,
    ACTConfig: build_act,
    RetinaNetConfig: build_retinanet,
    FCOSConfig: build_fcos,
    ATSSConfig: build_atss,
    YOLOv1Config: build_yolov1,
    YOLOv2Config: build_yolov2,
    YOLOv3Config: build_yolov3,
    YOLOv4Config: build_yolov4,
    YOLOv5Config: build_yolov5,
    YOLOv6Config: build_yolov6,
    YOLOv7Config: build_yolov7,
    YOLOXConfig: build_yolox,
    DETRConfig: build_detr,
    DeformableDETRConfig: build_deformable_detr,
    DINOConfig: build_dino,
    RTDETRConfig: build_rt_detr,
    DFINEConfig: build_d_fine,
    LWDETRConfig: build_lw_detr,
    DiffusionDetConfig: build_diffusiondet,
}


def learned_columns(config: DetectorConfig) -> tuple[Column, ...]:
    """What of a data set a detector learns beside boxes."""
    return config.columns if isinstance(config, TwoStageConfig) else ()


def build_detector(config: DetectorConfig, categories: Categories) -> AnyDetector:
    """The detector in plain modules; see `detkit.accelerate` for faster ones. Raises ValueError, see `clip_of`."""
    clip = clip_of(config)
    detector = BUILDERS[type(config)](config, categories)
    detector.input.clip = clip
    return detector


def clip_of(config: DetectorConfig) -> Clip | None:
    """The frames that the detector takes for each image; None: the image alone.

    Raises ValueError for a backbone of clips in a detector that cannot have one.
    """
    if isinstance(config, ACTConfig):
        return config.clip
    backbone = config.backbone
    if not isinstance(backbone, ClipStagedConfig):
        return None
    if isinstance(config, SlidingWindowConfig | RCNNConfig):
        raise ValueError(
            f"model.backbone: {backbone.name} takes clips, of which {config.name} cannot take crops; use fast_rcnn, "
            "faster_rcnn or a detector of another family"
        )
    if backbone.time_pooling == "none":
        raise ValueError("model.backbone.time_pooling: none leaves maps with a time axis, for which there is no head")
    return backbone.clip

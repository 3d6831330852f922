"""The layers of detkit's YOLOs in the order of a darknet file."""

from __future__ import annotations

from typing import Any

from torch import nn

from detkit.config import UserError
from detkit.detectors.detector import AnyDetector
from detkit.detectors.yolov1 import YOLOv1
from detkit.detectors.yolov2 import YOLOv2
from detkit.detectors.yolov3 import YOLOv3
from detkit.detectors.yolov4 import YOLOv4
from detkit.detectors.yolov7 import YOLOv7
from detkit.nn.backbones.darknet import conv_blocks
from detkit.nn.blocks import LocallyConnected
from detkit.nn.necks.yolo_v4 import YOLOv4Neck


def official_layers(detector: AnyDetector, source: str) -> list[nn.Module]:
    """The layers with weights. Raises UserError, which begins with `source`, if darknet has no such detector."""
    if not isinstance(detector, YOLOv1 | YOLOv2 | YOLOv3 | YOLOv4 | YOLOv7):
        name = type(detector).__name__
        raise UserError(f"{source}: darknet's weights are for yolov1 to yolov4 and yolov7, not {name}")
    if isinstance(detector, YOLOv7):
        _check_deployed(detector, source)
    trunk: list[nn.Module] = [*conv_blocks(detector.backbone)]
    if len(trunk) != sum(isinstance(module, nn.Conv2d) for module in detector.backbone.modules()):
        raise UserError(f"{source}: darknet's weights need a backbone of darknet, such as darknet53")
    head: Any = detector.head
    neck: Any = detector.neck
    match detector:
        case YOLOv1():
            hidden = [layer for layer in head.hidden.modules() if isinstance(layer, nn.Linear | LocallyConnected)]
            return [*trunk, *hidden, head.output]
        case YOLOv2():
            return [*trunk, *conv_blocks(neck), *head.predict]
        case YOLOv7():
            return [*trunk, *_path_of_yolov7(neck, head)]
        case YOLOv4() if isinstance(neck, YOLOv4Neck):
            return [*trunk, *_path_of_yolov4(neck, head)]
        case _:
            return [*trunk, *_path_of_yolov3(neck, head)]


def _check_deployed(detector: YOLOv7, source: str) -> None:
    config: Any = detector.head.config
    if config.implicit or config.block == "rep":
        raise UserError(
            f"{source}: darknet has YOLOv7's deployed form: set model.head.implicit=false and model.head.block=conv "
            "(yolov7-tiny: leaky)"
        )


def _path_of_yolov3(neck: Any, head: Any) -> list[nn.Module]:
    """Coarsest level first; the head's levels are finest first."""
    layers: list[nn.Module] = []
    for depth, predict in enumerate(reversed(head.predict)):
        layers += [*conv_blocks(neck.body[depth]), *conv_blocks(neck.output[depth]), predict]
        layers += neck.lateral[depth : depth + 1]
    return layers


def _path_of_yolov4(neck: Any, head: Any) -> list[nn.Module]:
    """Down to the finest level, and up again with the predictions."""
    layers: list[nn.Module] = [*conv_blocks(neck.pyramid)]
    for reduce, lateral, body in zip(neck.reduce, neck.lateral, neck.top_down, strict=True):
        layers += [reduce, lateral, *conv_blocks(body)]
    layers += [neck.output[0], head.predict[0]]
    for level, (down, body) in enumerate(zip(neck.down, neck.bottom_up, strict=True), start=1):
        layers += [down, *conv_blocks(body), neck.output[level], head.predict[level]]
    return layers


def _path_of_yolov7(neck: Any, head: Any) -> list[nn.Module]:
    """Down to the finest level, up again, and then the predictions of all levels."""
    layers: list[nn.Module] = [*conv_blocks(neck.pyramid)]
    for reduce, lateral, body in zip(neck.reduce, neck.lateral, neck.top_down, strict=True):
        layers += [reduce, lateral, *conv_blocks(body)]
    for down, body in zip(neck.down, neck.bottom_up, strict=True):
        layers += [*conv_blocks(down), *conv_blocks(body)]
    for block, predict in zip(head.convs, head.predict, strict=True):
        layers += [block, predict]
    return layers

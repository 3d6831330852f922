"""How the operators that torch's ONNX exporter does not know become ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision  # noqa: F401, registers its operators
from onnxscript import opset21

import detkit.ops.suppress  # noqa: F401, registers the operator

op: Any = opset21  # its stubs know no chains of calls
OPSET = 21  # the newest of which onnxruntime 1.32 has all operators; it lacks the RoiAlign of 22
BOOL = 9  # in ONNX's enumeration of types
LOWEST = -3.0e38  # below every score, above -inf


def suppress(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """`detkit::suppress` as NonMaxSuppression, which does the same and answers with indices `[M, 3]`."""
    shape = op.Shape(scores)
    num_boxes = op.Gather(shape, op.Constant(value_ints=[2]))
    boxes = op.Reshape(boxes, op.Constant(value_ints=[0, 0, 4]))  # OpenVINO forgets the 4 in graphs of 8 bits
    rows = op.NonMaxSuppression(
        boxes, scores, num_boxes, op.Constant(value_floats=[iou_threshold]), op.Constant(value_floats=[LOWEST])
    )
    ones = op.Expand(op.Constant(value_int=1), op.Gather(op.Shape(rows), op.Constant(value_ints=[0])))
    none = op.Expand(op.Constant(value_int=0), shape)
    return op.Cast(op.ScatterND(none, rows, ones), to=BOOL)


def roi_pool(features: Any, rois: Any, spatial_scale: float, pooled_height: int, pooled_width: int) -> Any:
    """`torchvision::roi_pool` as MaxRoiPool; the indices of the maxima, which only a gradient needs, are left out."""
    return op.MaxRoiPool(
        features, rois, pooled_shape=[pooled_height, pooled_width], spatial_scale=spatial_scale
    ), op.Constant(value_ints=[0])


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.detkit.suppress.default: suppress,
    torch.ops.torchvision.roi_pool.default: roi_pool,
}

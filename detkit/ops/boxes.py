"""Boxes: area, clipping, formats, minimum side.

Legend: `...` any leading dimensions, N boxes, H x W pixels.
Boxes are `[..., 4]` xyxy in continuous absolute pixels (width = x2 - x1) unless a function says otherwise. They may be
of any real dtype. Boxes, sides and areas that are returned are at least float32: half precision overflows in an area,
and an integer in a sum of two corners.
"""

from __future__ import annotations

import torch
from torch import Tensor


def box_area(boxes: Tensor, *, inclusive: bool = False) -> Tensor:
    """Area `[...]` of each box in px^2; 0 where x2 < x1 or y2 < y1."""
    width, height = box_sides(boxes, inclusive=inclusive)
    return width.clamp(min=0) * height.clamp(min=0)


def box_sides(boxes: Tensor, *, inclusive: bool = False) -> tuple[Tensor, Tensor]:
    """Width and height `[...]` of each box `[..., 4]` xyxy in pixels; negative where x2 < x1.

    inclusive  x2 and y2 are the last pixels inside: width = x2 - x1 + 1, as in R-CNN and VOC
    """
    boxes = _in_float("boxes", boxes)
    sides = boxes[..., 2:] - boxes[..., :2]
    if inclusive:
        sides = sides + 1
    return sides[..., 0], sides[..., 1]


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes `[..., 4]` xyxy cut off at the borders of an image of size `(h, w)`: x in [0, w], y in [0, h].

    A box outside the image becomes one without area. For inclusive corners pass `(h - 1, w - 1)`.
    """
    boxes = _in_float("boxes", boxes)
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack((x, y), dim=-1).flatten(-2)


def clip_to_windows(boxes: Tensor, windows: Tensor) -> Tensor:
    """Boxes `[..., 4]` xyxy cut off at the borders of windows xyxy, which are `[..., 4]`, one a box, or `[4]` for all.

    A box outside its window becomes one without area.
    """
    boxes, windows = _in_float("boxes", boxes), _in_float("windows", windows)
    low, high = windows[..., :2], windows[..., 2:]
    corners = [corner.maximum(low).minimum(high) for corner in boxes.chunk(2, dim=-1)]
    return torch.cat(corners, dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners to centre, width, height (YOLO, DETR); both `[..., 4]`."""
    top_left, bottom_right = _in_float("boxes", boxes).chunk(2, dim=-1)
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim=-1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre, width, height (YOLO, DETR) to corners; both `[..., 4]`."""
    center, sides = _in_float("boxes", boxes).chunk(2, dim=-1)
    return torch.cat((center - sides / 2, center + sides / 2), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Corners to upper left corner, width, height (COCO); both `[..., 4]`."""
    top_left, bottom_right = _in_float("boxes", boxes).chunk(2, dim=-1)
    return torch.cat((top_left, bottom_right - top_left), dim=-1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Upper left corner, width, height (COCO) to corners; both `[..., 4]`."""
    top_left, sides = _in_float("boxes", boxes).chunk(2, dim=-1)
    return torch.cat((top_left, top_left + sides), dim=-1)


def valid_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Mask `[...]`, bool: both sides of the box `[..., 4]` xyxy are at least `min_size` pixels."""
    boxes = _in_float("boxes", boxes)
    return (boxes[..., 2:] - boxes[..., :2] >= min_size).all(-1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself if it is float32 or float64, else a float32 copy, whose products do not overflow."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _in_float(name: str, boxes: Tensor) -> Tensor:
    check_boxes(name, boxes)
    return at_least_float32(boxes)


def check_boxes(name: str, boxes: Tensor) -> None:
    """Raises ValueError unless the last dimension is 4."""
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"{name}: expected boxes [..., 4], got {list(boxes.shape)}")

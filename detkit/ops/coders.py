"""Boxes as regression targets relative to anchors, and back.

Legend: N boxes, K classes. Boxes and anchors are `[..., 4]` xyxy in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.ops.boxes import at_least_float32, box_sides, check_boxes


@dataclass(frozen=True)
class BoxCoder:
    """R-CNN's box regression, arXiv 1311.2524, appendix C: with centre x, y and sides w, h, and a for the anchor,

        dx = (x - xa) / wa    dy = (y - ya) / ha    dw = log(w / wa)    dh = log(h / ha)

    weights    factors of (dx, dy, dw, dh): 1 / std in Fast R-CNN, 1 / variance in SSD; both use (10, 10, 5, 5)
    clamp      largest dw and dh in decoding, before exp; None: no limit. log(1000 / 16) in torchvision and Detectron2,
               none in py-faster-rcnn and SSD
    inclusive  x2 and y2 are the last pixels inside: w = x2 - x1 + 1, centre = x1 + w / 2, as in py-faster-rcnn. Here
               decoding is the inverse of encoding; py-faster-rcnn does not subtract the 1 from x2 and y2.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    clamp: float | None = math.log(1000 / 16)
    inclusive: bool = False

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Deltas `[..., 4]`, at least float32, of boxes `[..., 4]` from as many anchors; all sides must be positive."""
        check_boxes("boxes", boxes)
        if boxes.shape != anchors.shape:
            raise ValueError(f"anchors: expected the shape of boxes {list(boxes.shape)}, got {list(anchors.shape)}")
        x, y, w, h = self._center_and_sides(boxes)
        xa, ya, wa, ha = self._center_and_sides(anchors)
        wx, wy, ww, wh = self.weights
        return torch.stack(
            (wx * (x - xa) / wa, wy * (y - ya) / ha, ww * torch.log(w / wa), wh * torch.log(h / ha)), dim=-1
        )

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes in the shape of the deltas, at least float32; not clipped to any image.

        deltas   `[N, 4]`, or `[N, K, 4]`: K boxes from each anchor
        anchors  `[N, 4]`
        """
        check_boxes("deltas", deltas)
        check_boxes("anchors", anchors)
        if deltas.shape[: anchors.ndim - 1] != anchors.shape[:-1] or deltas.ndim - anchors.ndim not in (0, 1):
            raise ValueError(
                f"deltas: expected [N, 4] or [N, K, 4] for anchors {list(anchors.shape)}, got {list(deltas.shape)}"
            )
        if deltas.ndim > anchors.ndim:
            anchors = anchors.unsqueeze(-2)
        xa, ya, wa, ha = self._center_and_sides(anchors)
        dx, dy, dw, dh = (
            d / weight for d, weight in zip(at_least_float32(deltas).unbind(-1), self.weights, strict=True)
        )
        if self.clamp is not None:
            dw, dh = dw.clamp(max=self.clamp), dh.clamp(max=self.clamp)
        x, y = dx * wa + xa, dy * ha + ya
        half_w, half_h = dw.exp() * wa / 2, dh.exp() * ha / 2
        x2, y2 = x + half_w, y + half_h
        if self.inclusive:
            x2, y2 = x2 - 1, y2 - 1
        return torch.stack((x - half_w, y - half_h, x2, y2), dim=-1)

    def _center_and_sides(self, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        w, h = box_sides(boxes, inclusive=self.inclusive)
        return boxes[..., 0] + w / 2, boxes[..., 1] + h / 2, w, h


@dataclass(frozen=True)
class SideCoder:
    """FCOS's boxes, arXiv 1904.01355, equation 1: the distances from the centre of a square to the left, upper, right
    and lower side of the box, in sides of the square."""

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Distances `[..., 4]`, at least float32, of boxes `[..., 4]` from as many squares; negative where a side is
        beyond the centre."""
        center, side = self._center_and_side(boxes, anchors)
        return torch.cat((center - boxes[..., :2], boxes[..., 2:] - center), dim=-1) / side

    def decode(self, distances: Tensor, anchors: Tensor) -> Tensor:
        """Boxes `[..., 4]`, at least float32, of distances `[..., 4]` from as many squares; not clipped to an image."""
        center, side = self._center_and_side(distances, anchors)
        left_top, right_bottom = (distances * side).chunk(2, dim=-1)
        return torch.cat((center - left_top, center + right_bottom), dim=-1)

    def _center_and_side(self, values: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        check_boxes("anchors", anchors)
        if values.shape != anchors.shape:
            raise ValueError(f"anchors: expected the shape {list(values.shape)}, got {list(anchors.shape)}")
        anchors = at_least_float32(anchors)
        return (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:3] - anchors[..., :1]


@dataclass(frozen=True)
class GridCoder:
    """YOLO's boxes from version 2 on, arXiv 1612.08242 section 2: with cell column cx, row cy, and anchor sides pw, ph,

        x = (sigmoid(tx) + cx) * stride    y = (sigmoid(ty) + cy) * stride    w = pw * exp(tw)    h = ph * exp(th)

    scale_xy  YOLOv4's grid sensitivity s: in place of sigmoid(t) stands sigmoid(t) * s - (s - 1) / 2, which can reach
              the borders of a cell; 1 before YOLOv4
    squared   (2 sigmoid(t))^2 in place of exp(t), so that a side has at most four times that of the anchor (YOLOv5)
    """

    scale_xy: Tensor | float = 1.0  # or one of each prediction, `[N, 1]`
    squared: bool = False

    def decode(self, raw: Tensor, cells: Tensor, anchors: Tensor, stride: Tensor | float) -> Tensor:
        """Boxes `[..., 4]` xyxy in input pixels, at least float32; not clipped to any image.

        raw      `[..., 4]` tx, ty, tw, th
        cells    `[..., 2]` column and row, broadcast with `raw`
        anchors  `[..., 2]` width and height in input pixels
        stride   input pixels between two cells
        """
        check_boxes("raw", raw)
        raw = at_least_float32(raw)
        offset = raw[..., :2].sigmoid() * self.scale_xy - (self.scale_xy - 1) / 2
        center = (offset + cells) * stride
        factor = (2 * raw[..., 2:].sigmoid()) ** 2 if self.squared else raw[..., 2:].exp()
        half = factor * anchors / 2
        return torch.cat((center - half, center + half), dim=-1)

"""Sliced inference, as SAHI does it (arXiv 2202.06934): a large picture is detected on in overlapping squares.

Legend: N detections of a picture. Windows are xyxy in whole pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from detkit.data.transforms.masks import shift_masks
from detkit.engine.prediction.tta import Predict, join
from detkit.ops.iou import box_iof, box_iou
from detkit.structures import Detections, Size

Window = tuple[int, int, int, int]

SAME = 0.5  # overlap above which two boxes are of one object
NEAR = 0.02  # of a tile: a box which ends so near to a border of it is cut by it


def tiled(predict: Predict, tile: int, overlap: float) -> Predict:
    """Detects on tiles of `tile` px at the resolution of the picture, and on the whole picture, for objects that are
    larger than a tile. Pictures that fit into one tile are detected on as they are.

    overlap  of neighbouring tiles, in parts of a tile; those of the last row and column end at the picture's border
    """

    def predict_tiled(images: Sequence[np.ndarray]) -> list[Detections]:
        wholes = predict(images)
        return [
            _detect_tiles(predict, image, whole, tile_windows((image.shape[0], image.shape[1]), tile, overlap))
            for image, whole in zip(images, wholes, strict=True)
        ]

    return predict_tiled


def tile_windows(size: Size, tile: int, overlap: float) -> list[Window]:
    """The tiles of a picture of `size` (h, w), row by row; one as large as the picture where that is not larger."""
    rows, columns = (_starts(length, tile, overlap) for length in size)
    height, width = min(tile, size[0]), min(tile, size[1])
    return [(x, y, x + width, y + height) for y in rows for x in columns]


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    if length <= tile:
        return [0]
    step = max(1, round(tile * (1 - overlap)))
    return [*range(0, length - tile, step), length - tile]


def _detect_tiles(predict: Predict, image: np.ndarray, whole: Detections, windows: Sequence[Window]) -> Detections:
    if len(windows) == 1:
        return whole
    size = (image.shape[0], image.shape[1])
    tiles = predict([image[y1:y2, x1:x2] for x1, y1, x2, y2 in windows])
    shifted = [_shift(detections, window, size) for detections, window in zip(tiles, windows, strict=True)]
    cut = [is_cut(detections.boxes, window, size) for detections, window in zip(shifted, windows, strict=True)]
    rows = torch.cat([torch.zeros(len(whole), dtype=torch.bool), *cut])
    joined, order = join([whole, *shifted])
    return without_parts(joined, rows[order])


def _shift(detections: Detections, window: Window, size: Size) -> Detections:
    """The detections of a tile as those of the picture, whose `size` is (h, w)."""
    objects, (left, top, _, _) = detections.objects, window
    objects = replace(objects, boxes=objects.boxes + objects.boxes.new_tensor([left, top] * 2))
    if detections.masks is not None:
        objects = replace(objects, masks=shift_masks(detections.masks.crops(), -top, -left, size).encode(size))
    if objects.keypoints is not None:
        objects = replace(objects, keypoints=objects.keypoints + objects.keypoints.new_tensor([left, top, 0]))
    return replace(detections, objects=objects)


def is_cut(boxes: Tensor, window: Window, size: Size) -> Tensor:
    """bool `[N]`: whether a box ends at a border of its tile that is none of the picture of `size` (h, w)."""
    height, width = size
    near = NEAR * max(window[2] - window[0], window[3] - window[1])
    inner = [window[0] > 0, window[1] > 0, window[2] < width, window[3] < height]
    return (((boxes - boxes.new_tensor(window)).abs() <= near) & torch.tensor(inner)).any(dim=1)


def without_parts(detections: Detections, cut: Tensor) -> Detections:
    """Each object once: greedy suppression within each class, boxes that no tile has cut (bool `[N]`) first.

    A box that is not cut goes if its IoU with a remaining one is above 0.5. A cut one goes if more than half of it lies
    in a remaining one: it is a part of the same object, however small. By IoU alone parts would remain; and by the
    part that lies in the other for all boxes, as SAHI does it, so would fewer of the objects that stand before larger
    ones of their class.
    """
    order = torch.argsort(detections.scores + 2 * ~cut, descending=True, stable=True)
    boxes, labels, cut = detections.boxes[order], detections.labels[order], cut[order]
    stays = torch.ones(len(order), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        rows = torch.nonzero(labels == label).squeeze(1)
        overlap = torch.where(cut[rows], box_iof(boxes[rows], boxes[rows]).T, box_iou(boxes[rows], boxes[rows]))
        covers = overlap > SAME
        for rank in range(len(rows)):
            if stays[rows[rank]]:
                stays[rows[rank + 1 :]] &= ~covers[rank, rank + 1 :]
    return detections[order[stays]]

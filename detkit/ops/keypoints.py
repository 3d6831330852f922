"""Between keypoints in pixels and the S x S cells of a region's heat maps.

Legend: R regions, P keypoints of an object. Boxes are `[R, 4]` xyxy, keypoints `[R, P, 3]` x, y and visibility, both in
pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def heatmap_targets(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cell of each keypoint, row * size + column, int64 `[R, P]`, and whether it is labelled and in its region.

    A keypoint on the right or lower border of a region lies in the last cell.
    Source: Mask R-CNN, section 5; `keypoints_to_heatmap` of torchvision.
    """
    scale = size / (boxes[:, 2:] - boxes[:, :2])
    position = keypoints[..., :2]
    cells = ((position - boxes[:, None, :2]) * scale[:, None]).floor().long()
    cells = torch.where(position == boxes[:, None, 2:], size - 1, cells)
    inside = ((cells >= 0) & (cells < size)).all(dim=-1) & (keypoints[..., 2] > 0)
    return torch.where(inside, cells[..., 1] * size + cells[..., 0], 0), inside


def keypoints_of_heatmaps(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely place of each keypoint, `[R, P, 2]` x, y, and its logit there, `[R, P]`.

    heatmaps  float `[R, P, S, S]`, logits
    Each map is enlarged to the pixels of its box (bicubic); the place is the middle of the best pixel.
    Source: `heatmaps_to_keypoints` of torchvision, which follows Detectron.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = sides.ceil()
    places, scores = [], []
    for maps, (width, height) in zip(heatmaps, pixels.long().tolist(), strict=True):
        large = F.interpolate(maps[None], size=(height, width), mode="bicubic", align_corners=False)[0]
        best = large.flatten(1).max(dim=1)
        places.append(torch.stack([best.indices % width, best.indices // width], dim=1))
        scores.append(best.values)
    if not places:
        return heatmaps.new_zeros(*heatmaps.shape[:2], 2), heatmaps.new_zeros(heatmaps.shape[:2])
    middle = torch.stack(places) + 0.5
    return middle * (sides / pixels)[:, None] + boxes[:, None, :2], torch.stack(scores)

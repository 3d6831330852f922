"""Anchors: the boxes of one cell, and their copies on all cells of a feature map.

Legend: A anchors a cell, H x W cells. Anchors are `[..., 4]` xyxy in input pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detkit.ops.boxes import at_least_float32


def cell_anchors(
    sizes: Sequence[float],
    ratios: Sequence[float],
    *,
    ratio: Literal["h/w", "w/h"] = "h/w",
    rounding: Literal["none", "corners", "sides"] = "none",
    base_size: float = 16,
    inclusive: bool = False,
) -> Tensor:
    """Anchors centred on zero, one for each ratio and size: sides of area size^2 and the given ratio.

    sizes      square roots of the areas, in pixels
    ratio      whether ratios are h/w, as in the R-CNN family, or w/h, as in SSD
    rounding   none: as Detectron2. corners: to whole corners, as torchvision. sides: to whole sides of a box of
               `base_size` pixels (width first, then height), which is scaled to the size afterwards, as py-faster-rcnn
    inclusive  x2 and y2 are the last pixels inside: corners are (side - 1) / 2 from the centre
    Returns float32 `[A, 4]`: all sizes of the first ratio, then of the next, as torchvision and py-faster-rcnn list
    them. (Detectron2 lists all ratios of the first size, then of the next.)
    """
    size = torch.tensor(sizes, dtype=torch.float64).repeat(len(ratios))
    h_over_w = torch.tensor(ratios, dtype=torch.float64).repeat_interleave(len(sizes))
    if ratio == "w/h":
        h_over_w = 1 / h_over_w
    elif ratio != "h/w":
        raise ValueError(f"ratio: expected 'h/w' or 'w/h', got {ratio!r}")

    if rounding == "sides":
        width = (base_size / h_over_w.sqrt()).round()
        height = (width * h_over_w).round()
        width, height = width * size / base_size, height * size / base_size
    else:
        width = size / h_over_w.sqrt()
        height = width * h_over_w

    half = torch.stack((width, height), dim=1) / 2
    if inclusive:
        half = half - 0.5
    if rounding == "corners":
        half = half.round()
    elif rounding not in ("none", "sides"):
        raise ValueError(f"rounding: expected 'none', 'corners' or 'sides', got {rounding!r}")
    return torch.cat((-half, half), dim=1).float()


def prior_anchors(
    min_size: float, max_size: float | None, ratios: Sequence[float], *, largest: float | None = None
) -> Tensor:
    """SSD's default boxes of one cell, centred on zero (arXiv 1512.02325, section 2.2), in the order of Caffe's layer.

    min_size  side of the first box, a square, in pixels
    max_size  the second box is a square with a side of sqrt(min_size * max_size); None: there is no second square
    ratios    w/h above 1; each gives a box of that ratio and one of its inverse, both of area min_size^2
    largest   limit of the sides, in pixels (torchvision's clip); None: no limit
    Returns float32 `[A, 4]`.
    """
    sides = [(min_size, min_size)]
    if max_size is not None:
        sides.append((math.sqrt(min_size * max_size),) * 2)
    for ratio in ratios:
        long, short = min_size * math.sqrt(ratio), min_size / math.sqrt(ratio)
        sides += [(long, short), (short, long)]
    half = torch.tensor(sides, dtype=torch.float32).clamp(max=math.inf if largest is None else largest) / 2
    return torch.cat((-half, half), dim=1)


def grid_anchors(
    cell_anchors: Tensor, feature_size: tuple[int, int], stride: float | tuple[float, float], *, offset: float = 0.0
) -> Tensor:
    """The anchors of a cell copied to every cell of a feature map, centred at (index + offset) * stride.

    cell_anchors  `[A, 4]` centred on zero; gives the device
    feature_size  (H, W)
    stride        input pixels between two cells, one number or (sy, sx)
    offset        of the centre in its cell, in strides: 0 in FPN, 0.5 in SSD, 7.5 / 16 in py-faster-rcnn (whose corners
                  are inclusive)
    Returns `[H * W * A, 4]`, ordered by y, then x, then anchor, at least float32: half precision is too coarse for
    coordinates above 2048.
    """
    if cell_anchors.ndim != 2 or cell_anchors.shape[1] != 4:
        raise ValueError(f"cell_anchors: expected [A, 4], got {list(cell_anchors.shape)}")
    cell_anchors = at_least_float32(cell_anchors)
    height, width = feature_size
    stride_y, stride_x = stride if isinstance(stride, tuple) else (stride, stride)
    y = (torch.arange(height, dtype=cell_anchors.dtype, device=cell_anchors.device) + offset) * stride_y
    x = (torch.arange(width, dtype=cell_anchors.dtype, device=cell_anchors.device) + offset) * stride_x
    y, x = torch.meshgrid(y, x, indexing="ij")
    centers = torch.stack((x, y, x, y), dim=2)
    return (centers[:, :, None] + cell_anchors).reshape(-1, 4)

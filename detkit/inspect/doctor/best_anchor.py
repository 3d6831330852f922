"""How well the best of many boxes on grids covers an object, without laying out the grids.

The overlap of two boxes of given sides is the product of what they share in x and in y, and each of these is largest
where the centres are nearest. So the best place of each shape of a grid is its cell that is nearest in both axes.

Legend: M objects on one canvas, A shapes of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detkit.nn.anchors import BoxGrid
from detkit.nn.proposals.windows import PyramidConfig, level_scales
from detkit.structures import Size


@dataclass(frozen=True, eq=False)
class Grid:
    """Boxes of the same shapes around every point of a grid.

    sides    float64 `[A, 2]`: width and height
    first    (x, y) of the first point
    spacing  (x, y) between two points
    counts   (x, y): points an axis
    """

    sides: np.ndarray
    first: tuple[float, float]
    spacing: tuple[float, float]
    counts: tuple[int, int]


def grids_of(layout: BoxGrid, map_sizes: Sequence[Size], canvas: Size) -> list[Grid]:
    """The levels of anchors or priors on maps of these sizes."""
    grids = []
    for number, (height, width) in enumerate(map_sizes):
        boxes = layout.level(number, (height, width), canvas).double().numpy().reshape(height, width, -1, 4)
        centres = (boxes[:, :, 0, :2] + boxes[:, :, 0, 2:]) / 2  # of the first shape: those of all are the same
        x, y = centres[0, 0].tolist()
        across = float(centres[0, 1, 0] - x) if width > 1 else 1.0
        down = float(centres[1, 0, 1] - y) if height > 1 else 1.0
        grids.append(Grid(boxes[0, 0, :, 2:] - boxes[0, 0, :, :2], (x, y), (across, down), (width, height)))
    return grids


def window_grids(size: Size, config: PyramidConfig, stride: int) -> list[Grid]:
    """The windows over the pyramid of an image of `size`, in pixels of the image."""
    grids = []
    for scale in level_scales(size, config):
        level = np.array([round(size[1] * scale), round(size[0] * scale)])  # (w, h)
        exact = level / np.array(size[::-1])
        counts = (level - config.window) // stride + 1
        side, spacing = config.window / exact, stride / exact
        x, y = (side / 2).tolist()
        across, down = spacing.tolist()
        grids.append(Grid(side[None], (x, y), (across, down), (int(counts[0]), int(counts[1]))))
    return grids


def best_iou(boxes: np.ndarray, grids: Sequence[Grid], windows: np.ndarray | None = None) -> np.ndarray:
    """float64 `[M]`: the highest IoU of each box `[M, 4]` xyxy with any box of the grids.

    windows  `[M, 4]`: only boxes inside this window count; None: all do
    """
    boxes = boxes.astype(np.float64)
    best = np.zeros(len(boxes))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for grid in grids:
        for sides in grid.sides:
            shared = np.ones(len(boxes))
            for axis in (0, 1):
                window = None if windows is None else windows[:, [axis, axis + 2]]
                shared *= _best_overlap(boxes[:, [axis, axis + 2]], float(sides[axis]), grid, axis, window)
            best = np.maximum(best, shared / (areas + sides.prod() - shared))
    return best


def _best_overlap(ends: np.ndarray, side: float, grid: Grid, axis: int, window: np.ndarray | None) -> np.ndarray:
    """float64 `[M]`: the most that intervals `[M, 2]` share with one of length `side` around a point of the grid.

    window  `[M, 2]`: it must lie within; None: anywhere
    """
    first, spacing, count = grid.first[axis], grid.spacing[axis], grid.counts[axis]
    lowest, highest = np.zeros(len(ends)), np.full(len(ends), count - 1.0)
    if window is not None:
        lowest = np.maximum(lowest, np.ceil((window[:, 0] + side / 2 - first) / spacing))
        highest = np.minimum(highest, np.floor((window[:, 1] - side / 2 - first) / spacing))
    point = np.clip(np.rint((ends.mean(axis=1) - first) / spacing), lowest, np.maximum(lowest, highest))
    centre = first + point * spacing
    shared = np.minimum(ends[:, 1], centre + side / 2) - np.maximum(ends[:, 0], centre - side / 2)
    return np.where(highest >= lowest, shared.clip(min=0), 0.0)

"""Between the pixels of masks and the S x S cells of a region: targets for training, and pictures of predictions.

Both are bilinear sampling on a grid of rows and columns, and so the product of two small matrices with the mask:
one of rows, one of columns.

Legend: N masks of a picture, P regions, S x S cells, H x W pixels. Boxes are `[P, 4]` xyxy in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detkit.structures import MaskCrops, Size

THRESHOLD = 0.5  # of a probability, from which on a pixel is the object's


def mask_targets(
    masks: MaskCrops[Tensor], objects: Tensor, boxes: Tensor, window: Tensor, size: int, *, aligned: bool = False
) -> Tensor:
    """float32 `[P, size, size]`: the mask of each region's object in the cells of the region.

    It is RoIAlign of the mask with as many samples in a cell as the cell has pixels, rounded up.

    objects  int64 `[P]`: the mask of each region
    window   `[4]` xyxy: where the picture lies; a sample beyond the middle of its last pixels has their value
    aligned  as in `ops.roi.roi_align`
    Source: `project_masks_on_boxes` of torchvision, with `aligned` Detectron2's `BitMasks.crop_and_resize`.
    """
    if not len(objects):
        return boxes.new_zeros(0, size, size)
    indices = objects.tolist()
    chosen = torch.as_tensor(masks.windows[indices], device=boxes.device)  # [P, 4]
    rows, columns = (
        _align_weights(boxes[:, [axis, axis + 2]].float(), chosen[:, [axis, axis + 2]], window[axis + 2], size, aligned)
        for axis in (1, 0)
    )
    crops = masks.crops()
    cells = []
    for index, row, column in zip(indices, rows, columns, strict=True):
        crop = crops[index]
        height, width = crop.shape
        cells.append(row[:, :height] @ crop.to(row.dtype) @ column[:, :width].T)
    return torch.stack(cells)


def _align_weights(sides: Tensor, windows: Tensor, end: Tensor, size: int, aligned: bool) -> Tensor:
    """float32 `[P, size, L]`: how much each pixel of a window counts in each cell, along one axis.

    sides    `[P, 2]`: where a region begins and ends
    windows  int64 `[P, 2]`: where the pixels begin and end; L is the length of the longest
    end      where the picture ends
    """
    start, extent = sides[:, 0], sides[:, 1] - sides[:, 0]
    if aligned:
        start = start - 0.5
    else:
        extent = extent.clamp(min=1)
    cell = extent / size
    samples = cell.ceil()  # of a cell; none, if the region has no size
    number = torch.arange(max(1, int(samples.max())), device=sides.device)
    offset = (number + 0.5) * (cell / samples.clamp(min=1))[:, None]  # [P, G]
    cells = torch.arange(size, device=sides.device) * cell[:, None]  # [P, size]
    position = start[:, None, None] + cells[:, :, None] + offset[:, None]  # [P, size, G]
    share = (number < samples[:, None]) / samples.clamp(min=1)[:, None]  # [P, G]
    share = share[:, None] * ((position >= -1) & (position <= end))
    position = position.clamp(min=0).minimum(end - 1)
    low = position.floor()
    high = (low + 1).minimum(end - 1)
    length = int((windows[:, 1] - windows[:, 0]).max())
    weights = sides.new_zeros(len(sides), size, length + 1)  # the last column takes what lies outside of the window
    for pixel, part in ((low, low + 1 - position), (high, position - low)):
        column = pixel.long() - windows[:, :1, None]
        column = torch.where((column >= 0) & (column < length), column, length)
        weights.scatter_add_(2, column, part * share)
    return weights[:, :, :length]


def paste_masks(masks: Tensor, boxes: Tensor, size: Size, *, rounded: bool = True) -> MaskCrops[np.ndarray]:
    """The pixels of a picture of `size` (h, w) that are each object's, with a probability of at least one half.

    masks    float `[N, S, S]`, probabilities in the cells of the boxes
    boxes    float `[N, 4]` xyxy in px of the picture
    rounded  boxes are rounded to whole pixels first (torchvision's `paste_masks_in_image`); False: the probability
             is that at the middle of each pixel (Detectron2's)
    """
    cells, (height, width) = masks.shape[-1], size
    windows = _paste_windows(boxes, cells, rounded)
    inside = windows.clamp(min=0).minimum(windows.new_tensor([width, height, width, height]))
    inside[:, 2:] = inside[:, 2:].maximum(inside[:, :2])
    padded = torch.nn.functional.pad(masks.float(), (1, 1, 1, 1)).cpu()
    crops = []
    for mask, box, window, (x1, y1, x2, y2) in zip(
        padded, boxes.tolist(), windows.tolist(), inside.tolist(), strict=True
    ):
        rows = _paste_weights(y1, y2, (window[1], window[3]) if rounded else (box[1], box[3]), cells, rounded)
        columns = _paste_weights(x1, x2, (window[0], window[2]) if rounded else (box[0], box[2]), cells, rounded)
        crops.append((rows @ mask @ columns.T >= THRESHOLD).numpy())
    return MaskCrops.of(crops, inside.numpy())


def _paste_windows(boxes: Tensor, cells: int, rounded: bool) -> Tensor:
    """int64 `[N, 4]`: the pixels that a mask can reach."""
    if not rounded:
        return torch.cat([boxes[:, :2].floor() - 1, boxes[:, 2:].ceil() + 1], dim=1).long().cpu()
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((cells + 2) / cells)
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    corners = torch.cat([centre - half, centre + half], dim=1).long().cpu()
    corners[:, 2:] = (corners[:, 2:] + 1).maximum(corners[:, :2] + 1)
    return corners


def _paste_weights(start: int, end: int, side: tuple[float, float], cells: int, rounded: bool) -> Tensor:
    """float32 `[end - start, cells + 2]`: how much each cell, with one of zeros before and after, counts in a pixel."""
    middle = torch.arange(start, end) + 0.5
    if rounded:  # the cells with those of zeros lie on the window
        position = (middle - side[0]) * ((cells + 2) / (side[1] - side[0])) - 0.5
    else:
        position = (middle - side[0]) * (cells / max(side[1] - side[0], 1e-6)) + 0.5
    columns = torch.arange(cells + 2)
    return (1 - (position[:, None] - columns).abs()).clamp(min=0)

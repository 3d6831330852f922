"""Region features: max and bilinear pooling from one map, from the fitting level of a pyramid, and crops of the image.

Legend: B images, P_i boxes of image i, P = sum P_i, C channels, L levels, oh x ow cells of a pooled region.
Features are `[B, C, H, W]`; boxes are B tensors `[P_i, 4]` xyxy in input pixels, or one tensor `[P, 5]`: image index,
x1, y1, x2, y2. All pooling returns `[P, C, oh, ow]` in the order of the boxes and in the dtype of the features, or
float32 if those are integers, and computes in float32 at least. Without any box the result is empty and still connected
to the features. There is no gradient for the boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.ops.boxes import at_least_float32, box_area
from detkit.ops.dispatch import attempt

Boxes = Tensor | Sequence[Tensor]  # `[P, 5]` with the image first, or B tensors `[P_i, 4]`


def roi_pool(features: Tensor, boxes: Boxes, output_size: int | tuple[int, int], spatial_scale: float) -> Tensor:
    """Maximum over each cell of the box, whose corners are rounded to whole feature cells; Fast R-CNN, section 2.1.

    spatial_scale  feature cells = input pixels * spatial_scale
    As in the Caffe layer the cell that x2, y2 round to belongs to the box. A cell without any feature is 0.
    """
    from torchvision.ops import roi_pool as kernel  # seconds to import, so not at the head

    rois = _to_rois(boxes, features.shape[0])
    source = at_least_float32(features)
    pooled: Tensor = kernel(source, rois.to(source.dtype), output_size, spatial_scale)
    return pooled.to(_result_dtype(features))


def roi_align(
    features: Tensor,
    boxes: Boxes,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    *,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Mean of bilinear samples in each cell of the box, without rounding; Mask R-CNN, section 3.

    spatial_scale   feature cells = input pixels * spatial_scale
    sampling_ratio  samples a side in each cell; 0: as many as the cell has feature cells, rounded up
    aligned         pixel centres at half integers (Detectron2); False: at integers, and boxes at least one feature
                    cell wide (torchvision's detectors)
    """
    rois = _to_rois(boxes, features.shape[0])
    return _align(features, rois, output_size, spatial_scale, sampling_ratio, aligned)


def multilevel_roi_align(
    features: Sequence[Tensor],
    boxes: Boxes,
    strides: Sequence[int],
    output_size: int | tuple[int, int],
    *,
    sampling_ratio: int = 0,
    aligned: bool = True,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """`roi_align` of each box from the one of L pyramid levels, finest first, that `feature_levels` chooses for it.

    strides  input pixels per feature cell of each level, as `feature_levels` takes them
    """
    if len(features) != len(strides):
        raise ValueError(f"features: expected one for each of the {len(strides)} strides, got {len(features)}")
    rois = _to_rois(boxes, features[0].shape[0])
    if len(features) == 1:
        return _align(features[0], rois, output_size, 1 / strides[0], sampling_ratio, aligned)

    levels = feature_levels(rois[:, 1:], strides, canonical_size=canonical_size, canonical_level=canonical_level)
    rows = _rows_of_levels(levels, len(strides))
    # A level without boxes is pooled all the same: it keeps its (zero) gradient. Under autocast levels may differ
    # in dtype; the first decides.
    dtype = _result_dtype(features[0])
    pooled = torch.cat(
        [
            _align(level, rois[indices], output_size, 1 / stride, sampling_ratio, aligned).to(dtype)
            for level, stride, indices in zip(features, strides, rows, strict=True)
        ]
    )
    # `index_copy_` would keep `pooled` for its gradient.
    return pooled.new_empty(rois.shape[0], *pooled.shape[1:]).index_put_((torch.cat(rows),), pooled)


def _rows_of_levels(levels: Tensor, num_levels: int) -> list[Tensor]:
    """The indices, ascending, of the values `[P]` that equal 0, 1, ..."""
    if torch.compiler.is_compiling():
        return [torch.nonzero(levels == number).squeeze(1) for number in range(num_levels)]
    counts = levels.bincount(minlength=num_levels).tolist()  # waits for CUDA once, and not for every level
    return list(torch.split(levels.argsort(stable=True), counts))


def feature_levels(
    boxes: Tensor, strides: Sequence[int], *, canonical_size: float = 224, canonical_level: int = 4
) -> Tensor:
    """The pyramid level for each box, by its area; FPN, arXiv 1612.03144, eq. 1.

    boxes            `[P, 4]` xyxy in input pixels
    strides          L powers of two, finest first; level k has stride 2^k. No power between may be missing; of levels
                     with the same stride (MobileNetV3's last two) the first is used, as in torchvision
    canonical_size   side in pixels of the box that belongs to `canonical_level`
    Returns int64 `[P]` indices into `strides`: floor(canonical_level + log2(sqrt(area) / canonical_size) + 1e-6),
    moved to the nearest level there is. A box without area has the finest.
    """
    finest, coarsest = _log2(strides[0]), _log2(strides[-1])
    powers = [2**level for level in range(finest, coarsest + 1)]
    if sorted(set(strides)) != powers or list(strides) != sorted(strides):
        raise ValueError(f"strides: expected powers of two without a gap, finest first, got {list(strides)}")
    # 1e-6 is torchvision's: a box of exactly canonical_size * 2^n must not fall below its level by rounding.
    levels = torch.floor(canonical_level + torch.log2(box_area(boxes).sqrt() / canonical_size) + 1e-6)
    levels = levels.clamp(finest, coarsest).long() - finest
    if len(strides) == len(powers):
        return levels
    return torch.tensor([strides.index(power) for power in powers], device=levels.device)[levels]


def roi_warp(images: Tensor, boxes: Boxes, output_size: int, *, context: int = 0) -> Tensor:
    """What is in each box, stretched to a square of `output_size` px; R-CNN, arXiv 1311.2524, appendix A.

    context  px of the result on each side that show what surrounds the box, which is enlarged for it by output_size /
             (output_size - 2 context) about its centre
    The window is rounded to whole pixels, at least one, and cut off at the image; pixels beyond are 0 (the mean,
    if that was subtracted before). The rest is read bilinearly between the window's pixels, without antialiasing.
    """
    if not 0 <= 2 * context < output_size:
        raise ValueError(f"context: expected at least 0 and less than half of {output_size}, got {context}")
    source = at_least_float32(images).resolve_neg()
    rois = _to_rois(boxes, images.shape[0]).to(source.dtype)
    center, half = (rois[:, 1:3] + rois[:, 3:]) / 2, (rois[:, 3:] - rois[:, 1:3]) / 2
    half = half * output_size / (output_size - 2 * context)
    start = torch.floor(center - half + 0.5)
    end = torch.maximum(torch.floor(center + half + 0.5), start + 1)
    limit = torch.stack([rois.new_full((), side) for side in (images.shape[3], images.shape[2])])
    steps = (torch.arange(output_size, device=rois.device, dtype=rois.dtype) + 0.5) / output_size
    points = start[:, :, None] + (end - start)[:, :, None] * steps  # [P, 2, output_size], continuous x and y
    inside = (points >= 0) & (points <= limit[:, None])
    first, last = start.clamp(min=0) + 0.5, torch.minimum(end, limit) - 0.5  # centres of the outermost pixels
    points = torch.maximum(torch.minimum(points, last[:, :, None]), first[:, :, None])
    points = points / limit[:, None] * 2 - 1
    read = _read_by_index if torch.compiler.is_compiling() else _read_image_by_image
    crops = read(source, rois[:, 0], points)
    inside_both = inside[:, 1, None, :, None] & inside[:, 0, None, None, :]
    return (crops * inside_both).to(_result_dtype(images))


def _read_image_by_image(source: Tensor, images: Tensor, points: Tensor) -> Tensor:
    """Bilinear values `[P, C, S, S]` of images `[B, C, H, W]` at x and y `[P, 2, S]` of columns and rows, both as
    `F.grid_sample` counts them, in the image of each region, `[P]`."""
    size = points.shape[2]
    x, y = points.unbind(dim=1)
    grid = torch.stack((x[:, None].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)), dim=-1)
    crops = source.new_empty(len(points), source.shape[1], size, size)
    for number, image in enumerate(source):
        rows = torch.nonzero(images == number).squeeze(1)
        copies = image.expand(len(rows), -1, -1, -1)
        crops[rows] = F.grid_sample(copies, grid[rows], mode="bilinear", align_corners=False)
    return crops


def _read_by_index(source: Tensor, images: Tensor, points: Tensor) -> Tensor:
    """`_read_image_by_image` in a program for any number of images, which cannot loop over them."""
    height, width = source.shape[2:]
    x, y = (((part + 1) * side - 1) / 2 for part, side in zip(points.unbind(dim=1), (width, height), strict=True))
    pixels = source.permute(0, 2, 3, 1).flatten(0, 2)  # [B * H * W, C]
    crops: Tensor | int = 0
    for row, row_weight in _neighbours(y, height):
        first = (images.long()[:, None] * height + row) * width  # pixel of each row of the crop
        for column, column_weight in _neighbours(x, width):
            weight = row_weight[:, :, None] * column_weight[:, None]
            crops = crops + pixels[first[:, :, None] + column[:, None]] * weight[..., None]
    assert isinstance(crops, Tensor)
    return crops.permute(0, 3, 1, 2)


def _neighbours(positions: Tensor, side: int) -> list[tuple[Tensor, Tensor]]:
    """The pixels, int64, before and after each position, counted from the centre of the first of `side`, and their
    weights."""
    before = positions.floor()
    share = positions - before
    return [((before + step).long().clamp(0, side - 1), weight) for step, weight in ((0, 1 - share), (1, share))]


def _align(
    features: Tensor,
    rois: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    source = at_least_float32(features)
    rois = rois.to(source.dtype)
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    arguments = (source, rois, (height, width), spatial_scale, sampling_ratio, aligned)
    pooled: Tensor | None = attempt("roi_align", *arguments)
    if pooled is None:
        from torchvision import ops  # seconds to import, so not at the head

        pooled = ops.roi_align(*arguments)
    return pooled.to(_result_dtype(features))


def _result_dtype(features: Tensor) -> torch.dtype:
    return features.dtype if features.is_floating_point() else torch.float32


def _to_rois(boxes: Boxes, num_images: int) -> Tensor:
    """The boxes of all images in one tensor `[P, 5]`: image index, x1, y1, x2, y2."""
    if isinstance(boxes, Tensor):
        if boxes.ndim != 2 or boxes.shape[1] != 5:
            raise ValueError(f"boxes: expected [P, 5] with the image first, got {list(boxes.shape)}")
        rois = at_least_float32(boxes.detach()).resolve_neg()
        return rois.clone() if rois.is_inference() else rois  # autograd cannot keep one that was made in that mode
    if len(boxes) != num_images or any(b.ndim != 2 or b.shape[1] != 4 for b in boxes):
        raise ValueError(f"boxes: expected {num_images} tensors [P, 4], got {[list(b.shape) for b in boxes]}")
    return torch.cat([F.pad(at_least_float32(b.detach()), (1, 0), value=i) for i, b in enumerate(boxes)])


def _log2(stride: int) -> int:
    return round(math.log2(stride))

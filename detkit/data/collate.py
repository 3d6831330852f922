"""Samples of one batch, resized on their way into one padded `Batch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from detkit.data.transforms import resize_sample
from detkit.structures import Batch, ImageInfo, Sample, Target


def collate(
    items: Sequence[tuple[Sample, ImageInfo]],
    stride: int,
    with_targets: bool,
    interpolations: Sequence[int] | None = None,
    allocate: Callable[[tuple[int, ...]], np.ndarray] | None = None,
) -> Batch:
    """Images on a common canvas of zeros: the largest height and width, rounded up to `stride`.

    They lie in its upper left corner, or at the offset of their letterbox, which leaves as much on the other side.
    In memory they stay `[B, H, W, 3]` (torch's channels_last), so that each is resized into its place.

    interpolations  of the resizes, one of OpenCV's for each image; bilinear unless given
    allocate        gives the memory of the images, uint8 of the shape asked for and of any content
    """
    width, height = (
        -(-max(info.input_size[1 - axis] + 2 * info.offset[axis] for _, info in items) // stride) * stride
        for axis in (0, 1)
    )
    shape = (len(items), height, width, 3)
    images = allocate(shape) if allocate else np.empty(shape, np.uint8)
    targets, proposals = [], []
    how = [cv2.INTER_LINEAR] * len(items) if interpolations is None else interpolations
    for canvas, (sample, info), interpolation in zip(images, items, how, strict=True):
        (h, w), (x, y) = info.input_size, info.offset
        sample = resize_sample(sample, info.input_size, interpolation, out=canvas[y : y + h, x : x + w])
        for border in (canvas[:y], canvas[y + h :], canvas[y : y + h, :x], canvas[y : y + h, x + w :]):
            border[:] = 0
        offset = torch.tensor(info.offset * 2, dtype=torch.float32)
        boxes = torch.from_numpy(sample.boxes) + offset
        targets.append(Target(boxes, torch.from_numpy(sample.labels), torch.from_numpy(sample.ignore)))
        if sample.proposals is not None:
            proposals.append(torch.from_numpy(sample.proposals) + offset)
    return Batch(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        tuple(info for _, info in items),
        tuple(targets) if with_targets else None,
        tuple(proposals) or None,
    )

"""Resizes the samples of one batch into one padded `Batch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from detkit.data.transforms import move_boxes, resize_sample
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
    In memory the images are `[B, H, W, 3]` (torch's channels_last), so that each is resized straight into its part.

    interpolations  of the resizes, one of OpenCV's for each image; bilinear unless given
    allocate        returns uint8 memory of a shape for the images, with any content
    """
    width, height = (
        -(-max(info.input_size[1 - axis] + 2 * info.offset[axis] for _, info in items) // stride) * stride
        for axis in (0, 1)
    )
    shape = (len(items), height, width, 3)
    images = allocate(shape) if allocate else np.empty(shape, np.uint8)
    if interpolations is None:
        interpolations = [cv2.INTER_LINEAR] * len(items)
    samples = [
        _draw(canvas, sample, info, interpolation)
        for canvas, (sample, info), interpolation in zip(images, items, interpolations, strict=True)
    ]
    return Batch(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        tuple(info for _, info in items),
        tuple(Target(sample.objects.to_tensors()) for sample in samples) if with_targets else None,
        tuple(torch.from_numpy(sample.proposals) for sample in samples if sample.proposals is not None) or None,
    )


def _draw(canvas: np.ndarray, sample: Sample, info: ImageInfo, interpolation: int) -> Sample:
    """Resizes the picture into its part of `canvas`, `[H, W, 3]`; returns the sample in pixels of the canvas."""
    (h, w), (x, y) = info.input_size, info.offset
    sample = resize_sample(sample, info.input_size, interpolation, out=canvas[y : y + h, x : x + w])
    for border in (canvas[:y], canvas[y + h :], canvas[y : y + h, :x], canvas[y : y + h, x + w :]):
        border[:] = 0
    if info.offset == (0, 0):
        return sample
    offset = np.array([x, y, x, y], np.float32)
    return move_boxes(sample, lambda boxes: boxes + offset)

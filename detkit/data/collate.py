"""Resizes the samples of one batch into one padded `Batch`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch

from detkit.data.transforms import on_canvas, resize_sample
from detkit.structures import Batch, ImageInfo, Sample, Size, Target


def canvas_size(infos: Iterable[ImageInfo], stride: int) -> Size:
    """(h, w) of a batch: the largest of either, with the borders of a letterbox, rounded up to `stride`."""
    sides = [tuple(info.input_size[axis] + 2 * info.offset[1 - axis] for axis in (0, 1)) for info in infos]
    height, width = (-(-max(lengths) // stride) * stride for lengths in zip(*sides, strict=True))
    return height, width


def batch_shape(items: Sequence[tuple[Sample, ImageInfo]], stride: int) -> tuple[int, ...]:
    """`[B, H, W, 3]`, of clips `[B, T, H, W, 3]`."""
    clip = items[0][0].image.shape[:-3]
    return (len(items), *clip, *canvas_size((info for _, info in items), stride), 3)


def collate(
    items: Sequence[tuple[Sample, ImageInfo]],
    stride: int,
    with_targets: bool,
    interpolations: Sequence[int] | None = None,
    out: np.ndarray | None = None,
) -> Batch:
    """Images on a common canvas of zeros, of `canvas_size`.

    They lie in its upper left corner, or at the offset of their letterbox, which leaves as much on the other side.
    In memory the images are `[B, H, W, 3]` (torch's channels_last), clips `[B, T, H, W, 3]`, so that each is resized
    straight into its part.

    interpolations  of the resizes, one of OpenCV's for each image; bilinear unless given
    out             uint8 memory for the images, of `batch_shape`, with any content
    """
    if out is None:
        out = np.empty(batch_shape(items, stride), np.uint8)
    if interpolations is None:
        interpolations = [cv2.INTER_LINEAR] * len(items)
    samples = [
        _draw(canvas, sample, info, interpolation)
        for canvas, (sample, info), interpolation in zip(out, items, interpolations, strict=True)
    ]
    return Batch(
        torch.from_numpy(out).movedim(-1, 1),
        tuple(info for _, info in items),
        tuple(Target(sample.objects.to_tensors()) for sample in samples) if with_targets else None,
        tuple(torch.from_numpy(sample.proposals) for sample in samples if sample.proposals is not None) or None,
    )


def _draw(canvas: np.ndarray, sample: Sample, info: ImageInfo, interpolation: int) -> Sample:
    """Resizes the picture or clip into its part of `canvas`, `[..., H, W, 3]`; returns the sample in pixels of that."""
    (h, w), (x, y) = info.input_size, info.offset
    sample = resize_sample(sample, info.input_size, interpolation, out=canvas[..., y : y + h, x : x + w, :])
    beside = canvas[..., y : y + h, :, :]
    for border in (canvas[..., :y, :, :], canvas[..., y + h :, :, :], beside[..., :x, :], beside[..., x + w :, :]):
        border[:] = 0
    if info.offset == (0, 0):
        return sample
    height, width = canvas.shape[-3:-1]
    return on_canvas(sample, y, x, (height, width))

"""Samples of one batch, resized already, into one padded `Batch`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detkit.structures import Batch, ImageInfo, Sample, Target


def collate(items: Sequence[tuple[Sample, ImageInfo]], stride: int, with_targets: bool) -> Batch:
    """Images in the upper left corner of a common canvas: the largest height and width, rounded up to `stride`, zeros.

    Boxes need no change, because the padding is right and bottom only.
    """
    height, width = (
        -(-max(sample.image.shape[axis] for sample, _ in items) // stride) * stride  # rounded up
        for axis in (0, 1)
    )
    images = torch.zeros((len(items), 3, height, width), dtype=torch.uint8)
    for canvas, (sample, _) in zip(images, items, strict=True):
        picture = torch.from_numpy(sample.image).permute(2, 0, 1)
        canvas[:, : picture.shape[1], : picture.shape[2]] = picture
    targets = tuple(
        Target(torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels), torch.from_numpy(sample.ignore))
        for sample, _ in items
    )
    return Batch(images, tuple(info for _, info in items), targets if with_targets else None)

"""Samples of one batch, resized already, into one padded `Batch`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detkit.structures import Batch, ImageInfo, Sample, Target


def collate(items: Sequence[tuple[Sample, ImageInfo]], stride: int, with_targets: bool) -> Batch:
    """Images on a common canvas of zeros: the largest height and width, rounded up to `stride`.

    They lie in its upper left corner, or at the offset of their letterbox, which leaves as much on the other side.
    """
    width, height = (
        -(-max(sample.image.shape[1 - axis] + 2 * info.offset[axis] for sample, info in items) // stride) * stride
        for axis in (0, 1)
    )
    images = torch.zeros((len(items), 3, height, width), dtype=torch.uint8)
    targets, proposals = [], []
    for canvas, (sample, info) in zip(images, items, strict=True):
        picture = torch.from_numpy(sample.image).permute(2, 0, 1)
        x, y = info.offset
        canvas[:, y : y + picture.shape[1], x : x + picture.shape[2]] = picture
        offset = torch.tensor(info.offset * 2, dtype=torch.float32)
        boxes = torch.from_numpy(sample.boxes) + offset
        targets.append(Target(boxes, torch.from_numpy(sample.labels), torch.from_numpy(sample.ignore)))
        if sample.proposals is not None:
            proposals.append(torch.from_numpy(sample.proposals) + offset)
    return Batch(
        images,
        tuple(info for _, info in items),
        tuple(targets) if with_targets else None,
        tuple(proposals) or None,
    )

"""Random batches to time detectors on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detkit.structures import Batch, ImageInfo, Objects, Target


def random_batch(sizes: Sequence[tuple[int, int]], objects: int, classes: int, stride: int = 1) -> Batch:
    """Noise of `sizes` (h, w) px on one canvas, a multiple of `stride`, and objects of 20 to 120 px in each image."""
    canvas = (-(-max(sides) // stride) * stride for sides in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, *canvas, dtype=torch.uint8)
    targets = []
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randint(0, 256, (3, height, width))
        corner = torch.rand(objects, 2) * torch.tensor([width - 130, height - 130])
        boxes = torch.cat([corner, corner + 20 + torch.rand(objects, 2) * 100], dim=1)
        labels = torch.randint(0, classes, (objects,))
        targets.append(Target(Objects(boxes, labels)))
    infos = [ImageInfo(i, size, size, (1.0, 1.0)) for i, size in enumerate(sizes)]
    return Batch(images, tuple(infos), tuple(targets))

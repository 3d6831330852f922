"""Random batches to time detectors on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detkit.structures import Batch, ImageInfo, MaskCrops, Objects, Target


def random_batch(
    sizes: Sequence[tuple[int, int]], objects: int, classes: int, stride: int = 1, masks: bool = False
) -> Batch:
    """Noise of `sizes` (h, w) px on one canvas, a multiple of `stride`, and objects of 20 to 120 px in each image.

    masks  objects have masks too: the ellipse in the box
    """
    canvas = (-(-max(sides) // stride) * stride for sides in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, *canvas, dtype=torch.uint8)
    targets = []
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randint(0, 256, (3, height, width))
        corner = torch.rand(objects, 2) * torch.tensor([width - 130, height - 130])
        boxes = torch.cat([corner, corner + 20 + torch.rand(objects, 2) * 100], dim=1)
        labels = torch.randint(0, classes, (objects,))
        targets.append(Target(Objects(boxes, labels, masks=ellipses(boxes) if masks else None)))
    infos = [ImageInfo(i, size, size, (1.0, 1.0)) for i, size in enumerate(sizes)]
    return Batch(images, tuple(infos), tuple(targets))


def ellipses(boxes: torch.Tensor) -> MaskCrops[torch.Tensor]:
    """The pixels whose middle lies in the ellipse of each box `[N, 4]`."""
    windows = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).long().tolist()
    crops = []
    for (x1, y1, x2, y2), (left, top, right, bottom) in zip(boxes.tolist(), windows, strict=True):
        x, y = torch.arange(left, right) + 0.5, torch.arange(top, bottom) + 0.5
        across, down = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
        crops.append((across**2 + down[:, None] ** 2 <= 1).numpy())
    return MaskCrops.of(crops, windows).map(torch.from_numpy)

"""A padded batch on which detkit and a reference are compared."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from detkit.structures import Batch, Detections, ImageInfo, MaskCrops, Objects, Size, Target


def padded_batch(sizes: Sequence[Size], counts: Sequence[int], num_classes: int, corner: float, side: float) -> Batch:
    """Smooth noise of `sizes` on a common canvas, `counts[i]` objects on the i-th: upper left corners below `corner`,
    sides of 8 to 8 + `side` px."""
    generator = torch.Generator().manual_seed(1)
    images = torch.zeros(len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes), dtype=torch.uint8)
    targets = []
    for image, (height, width), count in zip(images, sizes, counts, strict=True):
        coarse = torch.rand(1, 3, 12, 12, generator=generator)
        smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
        noise = torch.rand(3, height, width, generator=generator)
        image[:, :height, :width] = ((0.7 * smooth + 0.3 * noise) * 255).clamp(0, 255)
        corners = torch.rand(count, 2, generator=generator) * corner
        sides = torch.rand(count, 2, generator=generator) * side + 8
        labels = torch.randint(0, num_classes, (count,), generator=generator)
        boxes = torch.cat([corners, corners + sides], dim=1)
        targets.append(Target(Objects(boxes, labels)))
    infos = [ImageInfo(i, size, size, (1.0, 1.0)) for i, size in enumerate(sizes)]
    return Batch(images, tuple(infos), tuple(targets))


def with_masks(batch: Batch) -> Batch:
    """Each object an ellipse that fills its box."""
    assert batch.targets
    targets = []
    for target in batch.targets:
        boxes = target.objects.boxes.numpy().astype(np.float64)
        windows = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(np.int64)
        crops = []
        for box, (x1, y1, x2, y2) in zip(boxes, windows, strict=True):
            rows, columns = np.mgrid[y1:y2, x1:x2] + 0.5
            x = (2 * columns - box[0] - box[2]) / (box[2] - box[0])
            y = (2 * rows - box[1] - box[3]) / (box[3] - box[1])
            crops.append(x**2 + y**2 <= 1)
        masks = MaskCrops.of(crops, windows).map(torch.from_numpy)
        targets.append(Target(replace(target.objects, masks=masks)))
    return replace(batch, targets=tuple(targets))


def with_keypoints(batch: Batch, count: int) -> Batch:
    """`count` points of each object, a part of which lie outside its box or are not labelled."""
    assert batch.targets
    generator = torch.Generator().manual_seed(2)
    targets = []
    for target in batch.targets:
        corners, sides = target.objects.boxes[:, None, :2], (target.objects.boxes[:, 2:] - target.objects.boxes[:, :2])
        shares = torch.rand(len(sides), count, 2, generator=generator) * 1.2 - 0.1
        visibility = torch.randint(0, 3, (len(sides), count, 1), generator=generator)
        keypoints = torch.cat([corners + shares * sides[:, None], visibility], dim=2)
        targets.append(Target(replace(target.objects, keypoints=keypoints)))
    return replace(batch, targets=tuple(targets))


def in_order_of(detections: Detections, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes and scores of the detections, each at the place of the same detection in the reference."""
    places = places_in(detections, boxes, labels)
    return detections.boxes[places], detections.scores[places]


def places_in(detections: Detections, boxes: Tensor, labels: Tensor) -> Tensor:
    """int64 `[N]`: for each detection of the reference the number of the same among `detections`.

    Two detections whose scores differ by less than rounding have no order. Fails unless each has its counterpart.
    """
    other_label = detections.labels[:, None] != labels
    places = (
        torch.cdist(detections.boxes, boxes, compute_mode="donot_use_mm_for_euclid_dist") + 1e6 * other_label
    ).argmin(dim=0)
    assert sorted(places.tolist()) == list(range(len(detections))), "the detections are not those of the reference"
    assert torch.equal(detections.labels[places], labels)
    return places

"""A padded batch on which detkit and a reference are compared."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkit.structures import Batch, Detections, ImageInfo, Objects, Size, Target


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


def in_order_of(detections: Detections, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes and scores of the detections, each at the place of the same detection in the reference.

    Two detections whose scores differ by less than rounding have no order. Fails unless each has its counterpart.
    """
    other_label = detections.labels[:, None] != labels
    places = (
        torch.cdist(detections.boxes, boxes, compute_mode="donot_use_mm_for_euclid_dist") + 1e6 * other_label
    ).argmin(dim=0)
    assert sorted(places.tolist()) == list(range(len(detections))), "the detections are not those of the reference"
    assert torch.equal(detections.labels[places], labels)
    return detections.boxes[places], detections.scores[places]

"""The predictions of a batch that answer for an object, and those objects, side by side.

Legend: N predictions of one image, P positives of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.nn.assign.assignment import Assignment
from detkit.structures import Target


@dataclass(frozen=True, eq=False)
class Positives:
    """The predictions of a batch that answer for an object, image by image, and those objects.

    image       int64 `[P]`
    prediction  int64 `[P]`: its number in the image
    boxes       float32 `[P, 4]` xyxy in input px
    labels      int64 `[P]`
    object      int64 `[P]`: the row of the object among those of all targets that are not ignored
    """

    image: Tensor
    prediction: Tensor
    boxes: Tensor
    labels: Tensor
    object: Tensor


def positives_of(assignments: Sequence[Assignment], targets: Sequence[Target]) -> Positives:
    index = torch.stack([assignment.index for assignment in assignments])
    image, prediction = torch.nonzero(index >= 0, as_tuple=True)
    objects = [target.not_ignored() for target in targets]
    counts = torch.tensor([len(each) for each in objects], device=index.device)
    row = (counts.cumsum(0) - counts)[image] + index[image, prediction]
    boxes, labels = torch.cat([each.boxes for each in objects]), torch.cat([each.labels for each in objects])
    return Positives(image, prediction, boxes[row], labels[row], row)

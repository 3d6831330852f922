"""The regions of a batch that a region head looks at.

Legend: B images, P regions of all images together, P_i of image i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.nn.outputs import register_outputs


@register_outputs
@dataclass(frozen=True, eq=False)
class Regions:
    """
    boxes   float `[P, 4]` xyxy in input px
    images  int64 `[P]`, ascending: the image of each region
    valid   bool `[P]`; False: a row that only fills up a fixed number of rows an image, and has no meaning
    """

    boxes: Tensor
    images: Tensor
    valid: Tensor

    @staticmethod
    def from_list(boxes: Sequence[Tensor]) -> Regions:
        """From the boxes `[P_i, 4]` of each image, all of them valid; there is at least one image."""
        images = torch.cat([part.new_full((len(part),), i, dtype=torch.int64) for i, part in enumerate(boxes)])
        return Regions(torch.cat(list(boxes)), images, torch.ones_like(images, dtype=torch.bool))

    def to_list(self, num_images: int) -> list[Tensor]:
        """The valid boxes `[P_i, 4]` of each image."""
        rows = torch.nonzero(self.valid).squeeze(1)
        counts = self.images[rows].bincount(minlength=num_images).tolist()
        return list(torch.split(self.boxes[rows], counts))

    def rois(self) -> Tensor:
        """`[P, 5]`: image index, x1, y1, x2, y2, as `ops/roi.py` takes them."""
        return torch.cat([self.images[:, None].to(self.boxes.dtype), self.boxes], dim=1)

    def compact(self) -> Regions:
        """Without the rows that are not valid. A program that is being compiled keeps them: this only saves time."""
        if torch.compiler.is_compiling():
            return self
        return Regions(self.boxes[self.valid], self.images[self.valid], self.valid[self.valid])

"""Further heads on the regions of a two-stage detector, beside the classifier: of masks and of keypoints.

In training a branch looks at the sampled regions that are objects, in evaluation at the final detections
(He et al., arXiv 1703.06870, section 3).

Legend: B images, D rows of an image, P regions of all images together, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.heads.regions import RegionTargets
from detkit.nn.outputs import register_outputs
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows, images_of_rows
from detkit.ops.roi import multilevel_roi_align
from detkit.structures import Target


class BranchConfig(Config):
    output_size: int = Field(14, ge=1)  # bins a side
    sampling_ratio: int = Field(2, ge=0)  # RoIAlign samples a bin and axis; 0: as many as the bin has pixels
    aligned: bool = False  # RoIAlign with the half pixel shift
    loss_weight: float = Field(1.0, ge=0)


@register_outputs
@dataclass(frozen=True, eq=False)
class BranchOutputs:
    """Of the P regions that are objects, in training.

    regions  those regions
    logits   `[P, ...]`, of each branch its own
    labels   int64 `[P]`: the class of each
    objects  int64 `[P]`: which of its image's objects each is, counted without the ignored ones
    windows  `[B, 4]` xyxy in input px: where each picture lies on its canvas
    """

    regions: Regions
    logits: Tensor
    labels: Tensor
    objects: Tensor
    windows: Tensor


class Branch(nn.Module, ABC):
    """Pools regions from the levels of `strides`, and computes `[P, ...]` logits."""

    def __init__(self, config: BranchConfig, strides: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.strides = tuple(strides)

    def forward(self, features: list[Tensor], regions: Regions) -> Tensor:
        """features  levels `[B, C, H_l, W_l]`, finest first; those beyond `strides` are not read."""
        config, size = self.config, self.config.output_size
        pooled = multilevel_roi_align(
            features[: len(self.strides)],
            regions.rois(),
            self.strides,
            (size, size),
            sampling_ratio=config.sampling_ratio,
            aligned=config.aligned,
        )
        return self.predict(pooled)

    @abstractmethod
    def predict(self, pooled: Tensor) -> Tensor:
        """Logits `[P, ...]` of pooled regions `[P, C, output_size, output_size]`."""

    def outputs_of_objects(
        self, features: list[Tensor], regions: Regions, targets: RegionTargets, windows: Tensor
    ) -> BranchOutputs:
        """Of the sampled regions those that are objects."""
        rows = torch.nonzero(targets.labels > 0).squeeze(1)
        chosen = Regions(regions.boxes[rows], regions.images[rows], regions.valid[rows])
        if targets.objects is None:
            raise ValueError("expected region targets with the objects that they are")
        return BranchOutputs(chosen, self(features, chosen), targets.labels[rows] - 1, targets.objects[rows], windows)

    @abstractmethod
    def criterion(self, outputs: BranchOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses by name: scalars, already weighted."""

    def detect(self, features: list[Tensor], rows: DetectionRows) -> DetectionRows:
        """The detections with what this branch sees in them."""
        num_images, num_rows = rows.scores.shape
        valid = torch.arange(num_rows, device=rows.boxes.device) < rows.counts[:, None]
        images = images_of_rows(num_images, num_rows, rows.boxes.device)
        everything = Regions(rows.boxes.flatten(0, 1), images, valid.flatten())
        regions = everything.compact()
        labels = rows.labels.flatten() if regions is everything else rows.labels[valid]
        values = self.values(self(features, regions), labels)
        if regions is not everything:
            values = values.new_zeros(len(images), *values.shape[1:]).index_put_((everything.valid,), values)
        return self.with_values(rows, values.view(num_images, num_rows, *values.shape[1:]))

    @abstractmethod
    def values(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What `with_values` takes, float32 `[P, ...]`, of logits `[P, ...]` and labels int64 `[P]`."""

    @abstractmethod
    def with_values(self, rows: DetectionRows, values: Tensor) -> DetectionRows:
        """`rows` with values `[B, D, ...]`."""

"""The head of a sliding window: fully connected layers on the trunk's map of a window, or of a whole image at once.

Legend: P windows of the batch together, B maps, N windows of one, K classes, C channels, c x c cells of a window's map.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detkit.nn.heads.regions import RefiningConfig, RefiningHead, RegionTargets, RoIOutputs
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import SelectionConfig


class WindowSelectionConfig(SelectionConfig):
    top_k_per_class: int | None = Field(200, ge=1)
    nms_threshold: float | None = Field(0.3, ge=0, le=1)  # with suppression: merge, windows above it are joined


class WindowHeadConfig(RefiningConfig):
    hidden: tuple[int, ...] = Field((256,), min_length=1)
    ranks: tuple[int, ...] = Field((), max_length=0)
    batch_size_per_image: int = Field(64, ge=1)
    positive_fraction: float = Field(0.5, ge=0, le=1)
    mined: int = Field(512, ge=0)  # background windows of an image, drawn at random, among which hard ones are sought
    hard_fraction: float = Field(0.5, ge=0, le=1)  # of the background in a training batch: the hardest of those
    smooth_l1_beta: float = Field(1.0, ge=0)
    selection: WindowSelectionConfig = WindowSelectionConfig()


class DenseLinear(nn.Linear):
    """A fully connected layer that also takes a map: OverFeat, arXiv 1312.6229, section 3.5.

    Rows `[N, C * c * c]` -> `[N, F]`; a map `[B, C, h, w]` -> `[B, F, h - c + 1, w - c + 1]`, the same at every place.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return super().forward(x)
        cells = math.isqrt(self.in_features // x.shape[1])
        return F.conv2d(x, self.weight.view(self.out_features, -1, cells, cells), self.bias)


class WindowHead(RefiningHead):
    """`forward` takes the maps of windows, `dense` those of whole images; both give the same for the same window."""

    config: WindowHeadConfig

    def __init__(self, config: WindowHeadConfig, in_channels: int, cells: int, num_classes: int) -> None:
        super().__init__(config, in_channels * cells**2, num_classes)
        first = DenseLinear(in_channels * cells**2, config.hidden[0])
        first.load_state_dict(self.hidden[0].state_dict())
        self.hidden[0] = first

    def forward(self, maps: Tensor, regions: Regions, targets: RegionTargets | None = None) -> RoIOutputs:
        """maps `[P, C, c, c]`."""
        return self.predict(maps, regions, targets)

    def dense(self, features: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Logits `[B, N, K + 1]` and deltas `[B, N, K + 1, 4]` of every window of maps `[B, C, h, w]`, row by row.

        grid  rows and columns of windows; a padded trunk has room for one more on its map
        """
        first, *others = self.hidden
        hidden = F.relu(first(features))[:, :, : grid[0], : grid[1]].flatten(2).mT.flatten(0, 1)
        for layer in others:
            hidden = F.relu(layer(hidden))
        of_each_map = (features.shape[0], grid[0] * grid[1])
        logits, deltas = self.classifier(hidden), self.regressor(hidden).unflatten(1, (-1, 4))
        return logits.unflatten(0, of_each_map), deltas.unflatten(0, of_each_map)

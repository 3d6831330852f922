"""The keypoint branch of Mask R-CNN (He, Gkioxari, Dollar, Girshick, arXiv 1703.06870, section 5).

Legend: B images, D rows of an image, R regions, P keypoints of an object, C channels, S x S cells of a heat map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.heads.branch import Branch, BranchConfig, BranchOutputs
from detkit.nn.heads.regions import conv_layers, init_relu_convs
from detkit.nn.selection import DetectionRows
from detkit.ops.keypoints import heatmap_targets
from detkit.structures import Target


class KeypointConfig(BranchConfig):
    """Defaults: torchvision's `keypointrcnn_resnet50_fpn`. A heat map has four times as many cells a side as
    `output_size`."""

    channels: tuple[int, ...] = Field((512,) * 8, min_length=1)  # of the 3x3 convolutions before the deconvolution


class KeypointBranch(Branch):
    """Logits `[R, P, S, S]`: where in the region each keypoint is, as a softmax over the cells."""

    config: KeypointConfig

    def __init__(self, config: KeypointConfig, in_channels: int, strides: Sequence[int], num_keypoints: int) -> None:
        super().__init__(config, strides)
        self.layers = conv_layers(in_channels, config.channels, "none")
        self.deconv = nn.ConvTranspose2d(config.channels[-1], num_keypoints, 4, stride=2, padding=1)
        init_relu_convs(self)

    @override
    def predict(self, pooled: Tensor) -> Tensor:
        logits = self.deconv(self.layers(pooled))
        return F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)

    @override
    def criterion(self, outputs: BranchOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The mean cross-entropy over the labelled keypoints that lie in their region (section 5)."""
        keypoints = torch.cat([self._keypoints(outputs, target, i) for i, target in enumerate(targets)])
        cells, inside = heatmap_targets(keypoints, outputs.regions.boxes, outputs.logits.shape[-1])
        rows = torch.nonzero(inside.flatten()).squeeze(1)
        logits = outputs.logits.flatten(0, 1).flatten(1)[rows].float()
        loss = F.cross_entropy(logits, cells.flatten()[rows], reduction="sum") / max(1, len(rows))
        return {"keypoint": self.config.loss_weight * loss}

    def _keypoints(self, outputs: BranchOutputs, target: Target, image: int) -> Tensor:
        """float32 `[R_i, P, 3]`: those of the objects of the regions of one image, which come image after image."""
        keypoints = target.not_ignored().keypoints
        if keypoints is None:
            raise ValueError("expected targets with keypoints: the data set has none, or they were not read")
        return keypoints[outputs.objects[outputs.regions.images == image]]

    @override
    def values(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.float()

    @override
    def with_values(self, rows: DetectionRows, values: Tensor) -> DetectionRows:
        return replace(rows, heatmaps=values)

"""The region head of Fast R-CNN (Girshick, arXiv 1504.08083): each region is pooled from the shared map.

Legend: B images, P regions of the batch together, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor
from typing_extensions import override

from detkit.nn.heads.regions import RefiningConfig, RefiningHead, RegionTargets, RoIOutputs, conv_layers
from detkit.nn.proposals.regions import Regions
from detkit.ops.roi import multilevel_roi_align, roi_pool


class RoIConfig(RefiningConfig):
    """Defaults: torchvision's `fasterrcnn_resnet50_fpn`."""

    pool: Literal["align", "pool"] = "align"  # RoIAlign over all levels, or the paper's RoIPool on the only one
    output_size: int = Field(7, ge=1)  # bins a side
    sampling_ratio: int = Field(2, ge=0)  # RoIAlign samples a bin and axis; 0: as many as the bin has pixels
    aligned: bool = False  # RoIAlign with the half pixel shift
    conv_channels: tuple[int, ...] = ()  # of 3x3 convolutions before `hidden`; torchvision's version 2 has four
    norm: Literal["none", "bn"] = "none"  # after each of those convolutions


class RoIHead(RefiningHead):
    """Pools regions `[P, C, output_size, output_size]` from the levels of `strides`."""

    config: RoIConfig

    def __init__(self, config: RoIConfig, in_channels: int, strides: Sequence[int], num_classes: int) -> None:
        if config.pool == "pool" and len(strides) != 1:
            raise ValueError(f"RoIPool reads one level, got {len(strides)}; use pool: align with a pyramid")
        channels = (in_channels, *config.conv_channels)
        super().__init__(config, channels[-1] * config.output_size**2, num_classes)
        self.strides = tuple(strides)
        self.convs = conv_layers(in_channels, config.conv_channels, config.norm)

    def forward(self, features: list[Tensor], regions: Regions, targets: RegionTargets | None = None) -> RoIOutputs:
        """features  levels `[B, C, H_l, W_l]`, finest first; those beyond `strides` are not read."""
        return self.predict(self.pool(features, regions), regions, targets)

    @override
    def last_hidden(self, features: Tensor) -> Tensor:
        return super().last_hidden(self.convs(features))

    def pool(self, features: list[Tensor], regions: Regions) -> Tensor:
        config, rois, features = self.config, regions.rois(), features[: len(self.strides)]
        size = (config.output_size, config.output_size)
        if config.pool == "pool":
            # the kernel, as Caffe's, takes corners that are the first and last pixel inside
            inside = rois - rois.new_tensor([0, 0, 0, 1, 1])
            return roi_pool(features[0], inside, size, 1 / self.strides[0])
        return multilevel_roi_align(
            features, rois, self.strides, size, sampling_ratio=config.sampling_ratio, aligned=config.aligned
        )

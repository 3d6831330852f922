"""The sliding window: one classifier at every place and size, as detectors were before proposals.

An image pyramid, a window, a stride; a network trained on crops, with background among its classes and hard negatives
mined on the fly; and OverFeat's refinements (Sermanet et al., arXiv 1312.6229): all windows of a level in one pass, a
box regressed from each, boxes merged instead of suppressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor
from typing_extensions import override

from detkit.config import Config
from detkit.detectors.region_based import (
    RegionBasedDetector,
    RegionBasedOutputs,
    check_one_level,
    required_targets,
)
from detkit.nn.assign.assignment import sample
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.lenet import LeNetConfig
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.heads.regions import RegionTargets, RoIOutputs
from detkit.nn.heads.sliding_window import WindowHead, WindowHeadConfig
from detkit.nn.input import ImageInput, InputConfig, KeepConfig
from detkit.nn.proposals.regions import Regions
from detkit.nn.proposals.windows import Level, PyramidConfig, canvas_pyramid, cut_windows, pyramid
from detkit.nn.selection import images_of_rows
from detkit.structures import Categories, Target


class SlidingWindowConfig(Config):
    """Defaults: a LeNet-5 with wider maps, on colour."""

    name: Literal["sliding_window"] = "sliding_window"
    backbone: BackboneConfig = LeNetConfig(widths=(32, 64), activation="relu", pool="max")
    windows: PyramidConfig = PyramidConfig()
    roi: WindowHeadConfig = WindowHeadConfig()
    input: InputConfig = InputConfig(resize=KeepConfig())

    @model_validator(mode="after")
    def _one_level(self) -> SlidingWindowConfig:
        check_one_level(self.backbone.strides)
        return self


class SlidingWindow(RegionBasedDetector[RegionBasedOutputs[RoIOutputs]]):
    """Windows move by the stride of the trunk.

    A pass over a whole level equals one window after the other where the trunk pads nothing (LeNet-5). A padded trunk
    sees zeros at the border of a crop, and the neighbourhood in the level.

    An exported program has the levels of its canvas. A padded trunk sees zeros beyond a picture that is smaller, as its
    own padding is, but later layers see what the first ones make of those: windows near the right and lower border
    differ from PyTorch's, which do not in a picture as large as the canvas.
    """

    roi: WindowHead
    needs_fixed_canvas = True

    def __init__(
        self,
        backbone: StagedBackbone,
        windows: PyramidConfig,
        roi: WindowHead,
        image_input: ImageInput,
        categories: Categories,
    ) -> None:
        super().__init__(backbone, None, roi, image_input, categories)
        self.windows = windows

    @override
    def network(
        self,
        images: Tensor,
        sizes: Tensor,
        proposals: Regions | None = None,
        targets: Sequence[Target] | None = None,
    ) -> RegionBasedOutputs[RoIOutputs]:
        """The windows are the regions; `proposals` are not read."""
        if torch.compiler.is_compiling() and not self.training:
            roi = self.windows_of_canvas(images, sizes)
            return RegionBasedOutputs(roi, self.detect_in_evaluation(roi, sizes))
        pyramids = [
            self.pyramid(image[:, :height, :width])
            for image, (height, width) in zip(images, sizes.tolist(), strict=True)
        ]
        if not self.training:
            logits, deltas = zip(*map(self.dense, pyramids), strict=True)
            regions = Regions.from_list([torch.cat([level.boxes() for level in levels]) for levels in pyramids])
            roi = RoIOutputs(regions, torch.cat(logits), torch.cat(deltas), None)
            return RegionBasedOutputs(roi, self.detect_in_evaluation(roi, sizes))
        samples = map(self.sample, pyramids, required_targets(targets))
        crops, boxes, labels, target_boxes = zip(*samples, strict=True)
        maps = self.backbone(torch.cat(crops))[-1]
        roi = self.roi(maps, Regions.from_list(boxes), RegionTargets(torch.cat(labels), torch.cat(target_boxes)))
        return RegionBasedOutputs(roi, None)

    def pyramid(self, image: Tensor) -> list[Level]:
        return pyramid(image, self.windows, self.backbone.out_strides[-1])

    def dense(self, levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
        """Logits `[N, K + 1]` and deltas `[N, K + 1, 4]` of all windows of an image, level after level."""
        outputs = [self.roi.dense(self.backbone(level.image[None])[-1], level.grid) for level in levels]
        logits, deltas = (torch.cat(parts, dim=1)[0] for parts in zip(*outputs, strict=True))
        return logits, deltas

    def windows_of_canvas(self, images: Tensor, sizes: Tensor) -> RoIOutputs:
        """What an exported program computes: as many windows of every image; those within its picture are valid."""
        levels = canvas_pyramid(images, sizes, self.windows, self.backbone.out_strides[-1])
        boxes = torch.cat([level.boxes for level in levels], dim=1)
        valid = torch.cat([level.valid for level in levels], dim=1)
        image = images_of_rows(images.shape[0], boxes.shape[1], images.device)
        regions = Regions(boxes.flatten(0, 1), image, valid.flatten())
        outputs = [self.roi.dense(self.backbone(level.images)[-1], level.grid) for level in levels]
        logits, deltas = (torch.cat(parts, dim=1).flatten(0, 1) for parts in zip(*outputs, strict=True))
        return RoIOutputs(regions, logits, deltas, None)

    @torch.no_grad()
    def sample(self, levels: list[Level], target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A training batch of one image: crops, their boxes, labels (0 is background), and target boxes."""
        config, objects = self.roi.config, target.not_ignored()
        windows = torch.cat([level.boxes() for level in levels])
        assignment = self.roi.assigner.assign(windows, target)
        positive, background = sample(assignment, config.batch_size_per_image, config.positive_fraction)
        _, candidates = sample(assignment, config.mined, 0.0)
        hard = self.hardest(levels, candidates, round(config.hard_fraction * len(background)))
        background = torch.cat([hard, background[len(hard) :]])
        sampled = torch.cat([positive, background])
        matched = assignment.index[positive]
        return (
            cut_windows(levels, sampled),
            windows[sampled],
            torch.cat([objects.labels[matched] + 1, torch.zeros_like(background)]),
            torch.cat([objects.boxes[matched], windows[background]]),
        )

    def hardest(self, levels: list[Level], candidates: Tensor, count: int) -> Tensor:
        """The `count` background windows that look most like an object (section 5: the "most offending").

        The network is in the mode that it trains in. LeNet-5, the trunk as published, computes the same in both modes.
        A trunk with batch norm normalises these windows by their own statistics, which also enter its running ones,
        and dropout is active.
        """
        if count == 0 or len(candidates) == 0:
            return candidates[:0]
        maps = self.backbone(cut_windows(levels, candidates))[-1]
        background = self.roi.classifier(self.roi.last_hidden(maps)).softmax(dim=1)[:, 0]
        return candidates[background.topk(min(count, len(candidates)), largest=False).indices]


def build_sliding_window(config: SlidingWindowConfig, categories: Categories) -> SlidingWindow:
    backbone = build_backbone(config.backbone)
    window = config.windows.window
    with torch.no_grad():
        cells = backbone.eval()(torch.zeros(1, 3, window, window))[-1].shape[-1]
    backbone.train()
    roi = WindowHead(config.roi, backbone.out_channels[-1], cells, len(categories))
    return SlidingWindow(backbone, config.windows, roi, ImageInput(config.input, 1), categories)

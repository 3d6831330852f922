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

from detkit.config import Config
from detkit.detectors.region_based import RegionBasedDetector
from detkit.nn.assign.iou_matcher import sample_matches
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.lenet import LeNetConfig
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.heads.regions import RoIOutputs, RoISamples
from detkit.nn.heads.sliding_window import WindowHead, WindowHeadConfig
from detkit.nn.input import ImageInput, InputConfig, KeepConfig
from detkit.nn.proposals.windows import Level, PyramidConfig, cut_windows, pyramid
from detkit.structures import Batch, Target


class SlidingWindowConfig(Config):
    """Defaults: a LeNet-5 with wider maps, on colour."""

    name: Literal["sliding_window"] = "sliding_window"
    backbone: BackboneConfig = LeNetConfig(widths=(32, 64), activation="relu", pool="max")
    windows: PyramidConfig = PyramidConfig()
    roi: WindowHeadConfig = WindowHeadConfig()
    input: InputConfig = InputConfig(resize=KeepConfig())

    @model_validator(mode="after")
    def _one_level(self) -> SlidingWindowConfig:
        if len(self.backbone.levels) != 1:
            raise ValueError(f"backbone.levels: expected one level, found {list(self.backbone.levels)}")
        return self


class SlidingWindow(RegionBasedDetector):
    """Windows move by the stride of the trunk.

    A pass over a whole level equals one window after the other where the trunk pads nothing (LeNet-5). A padded trunk
    sees zeros at the border of a crop, and the neighbourhood in the level.
    """

    roi: WindowHead

    def __init__(
        self,
        backbone: StagedBackbone,
        windows: PyramidConfig,
        roi: WindowHead,
        image_input: ImageInput,
        class_names: Sequence[str],
    ) -> None:
        super().__init__(backbone, None, roi, image_input, class_names)
        self.windows = windows

    def forward(self, batch: Batch) -> RoIOutputs:
        images = zip(self.input(batch), batch.input_sizes, strict=True)
        levels = [self.pyramid(image[:, :height, :width]) for image, (height, width) in images]
        if not self.training:
            logits, deltas = zip(*(self.dense(of_image) for of_image in levels), strict=True)
            boxes = tuple(torch.cat([level.boxes() for level in of_image]) for of_image in levels)
            return RoIOutputs(boxes, torch.cat(logits), torch.cat(deltas), None)
        if batch.targets is None:
            raise ValueError("a batch without targets in training mode; call detector.eval() to detect")
        crops, boxes, labels, wanted = zip(*map(self.sample, levels, batch.targets), strict=True)
        maps = self.backbone(torch.cat(crops))[-1]
        outputs: RoIOutputs = self.roi(maps, boxes, RoISamples(torch.cat(labels), torch.cat(wanted)))
        return outputs

    def pyramid(self, image: Tensor) -> list[Level]:
        return pyramid(image, self.windows, self.backbone.out_strides[-1])

    def dense(self, levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
        """Logits `[N, K + 1]` and deltas `[N, K + 1, 4]` of all windows of an image, level after level."""
        logits, deltas = zip(
            *(self.roi.dense(self.backbone(level.image[None])[-1], level.grid) for level in levels), strict=True
        )
        return torch.cat(logits), torch.cat(deltas)

    @torch.no_grad()
    def sample(self, levels: list[Level], target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A training batch of one image: crops, their boxes, labels (0 is background), and the boxes wanted."""
        config, (objects, object_labels) = self.roi.config, target.objects()
        windows = torch.cat([level.boxes() for level in levels])
        matches = self.roi.match(windows, objects)
        positive, background = sample_matches(matches, config.batch_size_per_image, config.positive_fraction)
        _, pool = sample_matches(matches, config.mined, 0.0)
        hard = self.hardest(levels, pool, round(config.hard_fraction * len(background)))
        background = torch.cat([hard, background[len(hard) :]])
        chosen = torch.cat([positive, background])
        labels = torch.cat([object_labels[matches[positive]] + 1, torch.zeros_like(background)])
        return (
            cut_windows(levels, chosen),
            windows[chosen],
            labels,
            torch.cat([objects[matches[positive]], windows[background]]),
        )

    def hardest(self, levels: list[Level], pool: Tensor, count: int) -> Tensor:
        """Those of the background windows `pool` that look most like an object (section 5: the "most offending")."""
        if count == 0 or len(pool) == 0:
            return pool[:0]
        self.eval()
        logits = self.roi.classifier(self.roi.describe(self.backbone(cut_windows(levels, pool))[-1]))
        self.train()
        background = logits.softmax(dim=1)[:, 0]
        return pool[background.topk(min(count, len(pool)), largest=False).indices]


def build_sliding_window(config: SlidingWindowConfig, class_names: Sequence[str]) -> SlidingWindow:
    backbone = build_backbone(config.backbone)
    window = config.windows.window
    with torch.no_grad():
        cells = backbone.eval()(torch.zeros(1, 3, window, window))[-1].shape[-1]
    backbone.train()
    roi = WindowHead(config.roi, backbone.out_channels[-1], cells, class_names)
    return SlidingWindow(backbone, config.windows, roi, ImageInput(config.input, 1), class_names)

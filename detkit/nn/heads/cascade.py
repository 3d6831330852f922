"""Cascade R-CNN's region head (Cai and Vasconcelos, arXiv 1712.00726): each stage classifies and refines the boxes of
the one before, and is trained for a higher overlap.

Legend: P regions of the batch together (in training another number in each stage), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.heads.regions import RegionHead, RegionTargets, RoIOutputs
from detkit.nn.heads.roi import RoIConfig, RoIHead
from detkit.nn.outputs import register_outputs
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows
from detkit.ops.boxes import clip_to_windows
from detkit.structures import Target


class StageConfig(Config):
    """In which a later stage differs from the first."""

    fg_threshold: float = Field(ge=0, le=1)  # IoU; background is below it
    box_weights: tuple[float, float, float, float]  # 1 / std of the deltas, which become smaller from stage to stage


SECOND = StageConfig(fg_threshold=0.6, box_weights=(20.0, 20.0, 10.0, 10.0))
THIRD = StageConfig(fg_threshold=0.7, box_weights=(30.0, 30.0, 15.0, 15.0))


class CascadeConfig(RoIConfig):
    """The fields of a region head are those of the first stage. Defaults: Detectron2's `cascade_rcnn_R_50_FPN`."""

    class_agnostic: Literal[True] = True  # a stage goes on from one box
    smooth_l1_beta: float = Field(0.0, ge=0)
    sampling_ratio: int = Field(0, ge=0)
    aligned: bool = True
    later_stages: tuple[StageConfig, ...] = (SECOND, THIRD)

    def stages(self) -> list[RoIConfig]:
        """A configuration of each stage, the first one included."""
        changes = [
            {"fg_threshold": stage.fg_threshold, "bg_threshold": (0.0, stage.fg_threshold)}
            | {"box_weights": stage.box_weights}
            for stage in self.later_stages
        ]
        return [self, *(self.model_copy(update=change) for change in changes)]


@register_outputs
@dataclass(frozen=True, eq=False)
class CascadeOutputs:
    """
    stages  of each stage; in evaluation all have the same P rows, and `regions` is the box that it was given
    """

    stages: tuple[RoIOutputs, ...]

    @property
    def regions(self) -> Regions:
        return self.stages[0].regions


class CascadeHead(RegionHead[CascadeOutputs]):
    """A region head for each stage, each pooling its own boxes from the same features."""

    config: CascadeConfig

    def __init__(self, config: CascadeConfig, in_channels: int, strides: Sequence[int], num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.stages = nn.ModuleList(RoIHead(stage, in_channels, strides, num_classes) for stage in config.stages())

    def heads(self) -> list[RoIHead]:
        return list(self.stages)  # type: ignore[arg-type]

    def forward(
        self,
        features: list[Tensor],
        regions: Regions,
        windows: Tensor,
        region_targets: RegionTargets | None = None,
        targets: Sequence[Target] | None = None,
    ) -> CascadeOutputs:
        """
        features        levels `[B, C, H_l, W_l]`, finest first
        windows         `[B, 4]` xyxy in input px: where each picture lies on its canvas
        region_targets  of the regions of the first stage when training, and `targets` for those of the others
        """
        outputs: list[RoIOutputs] = []
        before: RoIHead | None = None
        for stage in self.heads():
            if before is not None:
                regions = self._next_regions(before, outputs[-1], windows)
                if targets is not None:
                    regions, region_targets = stage.match(regions, targets)
            pooled = stage.pool(features, regions)
            if pooled.requires_grad:  # the losses of the stages are summed; the features learn from their mean
                pooled.register_hook(lambda gradient: gradient / len(self.stages))  # type: ignore[no-untyped-call]
            outputs.append(stage.predict(pooled, regions, region_targets))
            before = stage
        return CascadeOutputs(tuple(outputs))

    @torch.no_grad()
    def _next_regions(self, stage: RoIHead, outputs: RoIOutputs, windows: Tensor) -> Regions:
        """The boxes that `stage` refined. In training those that are cut to nothing take no part any more; in
        evaluation they stay, so that the scores of all stages are of the same regions."""
        regions = outputs.regions
        boxes = clip_to_windows(stage.refined(outputs), windows[regions.images])
        valid = regions.valid
        if self.training:
            valid = valid & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return Regions(boxes, regions.images, valid)

    def criterion(self, outputs: CascadeOutputs) -> dict[str, Tensor]:
        """The losses of all stages, with the same weight."""
        losses: dict[str, Tensor] = {}
        for number, (stage, part) in enumerate(zip(self.heads(), outputs.stages, strict=True), 1):
            losses |= {name.replace("roi", f"stage{number}"): loss for name, loss in stage.criterion(part).items()}
        return losses

    @torch.no_grad()
    def detect(self, outputs: CascadeOutputs, windows: Tensor) -> DetectionRows:
        """Boxes are those of the last stage, scores the mean of all stages."""
        heads, last = self.heads(), outputs.stages[-1]
        scores = torch.stack([stage.scores(part) for stage, part in zip(heads, outputs.stages, strict=True)])
        return self.select(last.regions, heads[-1].refined(last), scores.mean(dim=0), windows)

"""DiffusionDet's head (Chen, Sun, Song, Luo, ICCV 2023, arXiv 2211.09788): noisy boxes are refined into objects.

In training these are the boxes of the objects and drawn ones beside them, with the noise of a drawn time. In evaluation
they are noise alone, refined in one or more steps of less and less noise.

Legend: B images, N boxes of an image, L layers ("heads" in the paper) that refine boxes one after the other, S sampling
steps, W width, K classes. Boxes are in parts of the picture's sides, padding excluded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.assign.dynamic_k import DynamicKAssigner, DynamicKConfig
from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.diffusion import (
    DiffusionConfig,
    cosine_alpha_bars,
    ddim_step,
    diffuse,
    padded_boxes,
    sampling_times,
    scaled_boxes,
    unscaled_boxes,
)
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.diffusion_layers import DiffusionLayer, DiffusionLayerConfig, time_embedding
from detkit.nn.heads.set_head import (
    DETROutputs,
    Matching,
    PredictionGroup,
    SetHead,
    SetLossConfig,
    SetSelectionConfig,
    SigmoidClasses,
    matched_boxes,
    mean_over_processes,
    picture_sides,
)
from detkit.nn.losses import FocalLossConfig
from detkit.nn.selection import (
    DetectionRows,
    best_pairs_of_levels,
    images_of_rows,
    scores_of_pairs,
    select_detections,
)
from detkit.nn.transformer import sine_embedding
from detkit.ops.boxes import at_least_float32, cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.ops.coders import BoxCoder
from detkit.ops.roi import multilevel_roi_align
from detkit.structures import Size, Target

LONGEST = 10000.0  # wavelength of the time's embedding, in 2 pi times
SEED = 0  # of the noise that evaluation starts from


class DiffusionSelectionConfig(SetSelectionConfig):
    """The best pairs of a box and a class of every step, N of each, are joined."""

    nms_threshold: float | None = Field(0.5, ge=0, le=1)


class DiffusionHeadConfig(SetLossConfig):
    """Defaults: DiffusionDet's. The number of boxes and of steps may change after training."""

    at_test: ClassVar[tuple[str, ...]] = ("num_boxes", "steps", "renewal_threshold")

    num_boxes: int = Field(500, ge=1)  # of an image
    steps: int = Field(1, ge=1)  # in evaluation
    renewal_threshold: float = Field(0.5, ge=0, le=1)  # a box that does not score more is drawn anew for the next step
    layers: int = Field(6, ge=1)
    layer: DiffusionLayerConfig = DiffusionLayerConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    output_size: int = Field(7, ge=1)  # bins a side of a pooled box
    sampling_ratio: int = Field(2, ge=0)  # RoIAlign samples a bin and axis; 0: as many as the bin has cells
    box_weights: tuple[float, float, float, float] = (2.0, 2.0, 1.0, 1.0)  # 1 / std of the deltas
    max_growth: float = Field(100000 / 16, ge=1)  # factor by which a layer may enlarge a side
    assigner: DynamicKConfig = DynamicKConfig()
    class_cost: float = Field(2.0, ge=0)
    class_weight: float = Field(2.0, ge=0)
    focal: FocalLossConfig = FocalLossConfig()
    class_prior: float = Field(0.01, gt=0, lt=1)  # probability of a class before training
    selection: DiffusionSelectionConfig = DiffusionSelectionConfig()

    @model_validator(mode="after")
    def _steps_have_times(self) -> DiffusionHeadConfig:
        if self.steps > self.diffusion.times:
            raise ValueError(f"steps: expected at most diffusion.times, {self.diffusion.times}, found {self.steps}")
        return self


class DiffusionHead(SetHead[DETROutputs]):
    """The outputs have the predictions of each layer in training, `[L, B, N, ...]`; in evaluation those of the last
    layer at each step, `[S, B, N, ...]`.

    noise  float32 `[2, S, N, 4]`: for each step the boxes that are drawn anew before it, and the noise of the step
           from it. It is the same for every image and in every process, so that an image has the same detections
           whenever it is looked at, in whatever batch, and in an exported program. As nothing learns it, it is part of
           no checkpoint.
    """

    config: DiffusionHeadConfig
    noise: Tensor
    alpha_bars: Tensor

    def __init__(self, config: DiffusionHeadConfig, width: int, strides: Sequence[int], num_classes: int) -> None:
        """strides: of the levels that boxes are pooled from; all have `width` channels."""
        super().__init__(config, num_classes, SigmoidClasses(num_classes, config.focal))
        self.assigner = DynamicKAssigner(
            config.assigner, self.classes.cost, config.class_cost, config.l1_cost, config.giou_cost
        )
        self.width, self.strides = width, tuple(strides)
        self.coder = BoxCoder(config.box_weights, clamp=math.log(config.max_growth))
        self.time = time_embedding(width)
        self.layers = nn.ModuleList(
            DiffusionLayer(config.layer, width, config.output_size**2, num_classes, config.class_prior)
            for _ in range(config.layers)
        )
        generator = torch.Generator("cpu").manual_seed(SEED)
        noise = torch.randn(2, config.steps, config.num_boxes, 4, generator=generator, device="cpu")
        self.register_buffer("noise", noise, persistent=False)
        self.register_buffer("alpha_bars", cosine_alpha_bars(config.diffusion.times).float(), persistent=False)

    @override
    def forward(
        self, features: list[Tensor], sizes: Tensor, canvas: Size, targets: Sequence[Target] | None = None
    ) -> DETROutputs:
        """targets: in training, whose boxes are given noise; None: boxes are sampled."""
        sides = picture_sides(sizes)
        if targets is None:
            return self._sample(features, sides)
        start = padded_boxes(SetTargets.of(targets, sides), self.config.num_boxes)
        start = scaled_boxes(start, self.config.diffusion.scale)
        times = torch.randint(self.config.diffusion.times, (len(start),), device=start.device)
        noisy = diffuse(start, torch.randn_like(start), self.alpha_bars[times])
        logits, boxes = self._refine(features, noisy, times, sides)
        return DETROutputs(torch.stack(logits), torch.stack(boxes), sides)

    def _sample(self, features: list[Tensor], sides: Tensor) -> DETROutputs:
        """Section 3.4. A step goes on from the boxes of the last layer, with the noise of a later time; those that are
        likely no objects are drawn anew (box renewal)."""
        config, scale = self.config, self.config.diffusion.scale
        renewed, fresh = self.noise
        noisy = renewed[0].expand(sides.shape[0], -1, -1)
        times = sampling_times(config.diffusion.times, config.steps)
        all_logits, all_boxes = [], []
        for step, (time, next_time) in enumerate(pairwise([*times, -1])):
            logits, boxes = self._refine(features, noisy, torch.full_like(sides[:, 0], time), sides)
            all_logits.append(logits[-1])
            all_boxes.append(boxes[-1])
            if next_time >= 0:
                start = scaled_boxes(boxes[-1], scale).clamp(-scale, scale)
                moved = ddim_step(noisy, start, self.alpha_bars[time], self.alpha_bars[next_time], fresh[step])
                likely = logits[-1].sigmoid().amax(dim=2, keepdim=True) > config.renewal_threshold
                noisy = torch.where(likely, moved, renewed[step + 1])
        return DETROutputs(torch.stack(all_logits), torch.stack(all_boxes), sides)

    def _refine(
        self, features: list[Tensor], noisy: Tensor, times: Tensor, sides: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits `[B, N, K]` and boxes cxcywh, at least float32 `[B, N, 4]`, of each layer. One learns nothing from the
        next through its boxes.

        noisy  `[B, N, 4]`: diffused boxes
        times  `[B]`
        """
        waves = sine_embedding(times[:, None] / (2 * math.pi), self.width, LONGEST)
        time = self.time(waves.to(features[0].dtype))
        boxes = cxcywh_to_xyxy(unscaled_boxes(noisy, self.config.diffusion.scale))
        hidden: Tensor | None = None
        all_logits, all_boxes = [], []
        for layer in self.layers:
            boxes = boxes.detach()
            pooled = self._pool(features, boxes * sides[:, None])
            if hidden is None:
                hidden = pooled.mean(dim=1).view(*boxes.shape[:2], self.width)
            hidden, logits, deltas = layer(hidden, pooled, time)
            boxes = self.coder.decode(at_least_float32(deltas), boxes)
            all_logits.append(logits)
            all_boxes.append(xyxy_to_cxcywh(boxes))
        return all_logits, all_boxes

    def _pool(self, features: list[Tensor], boxes: Tensor) -> Tensor:
        """Boxes `[B, N, 4]` xyxy in input px -> their cells `[B * N, output_size ** 2, W]`."""
        config = self.config
        images = images_of_rows(boxes.shape[0], boxes.shape[1], boxes.device)
        rois = torch.cat([images[:, None].to(boxes.dtype), boxes.flatten(0, 1)], dim=1)
        rois = rois.nan_to_num(0.0)  # a network that diverged reaches its loss, where the loop names the images
        levels = features[: len(self.strides)]
        pooled = multilevel_roi_align(
            levels, rois, self.strides, config.output_size, sampling_ratio=config.sampling_ratio
        )
        return pooled.flatten(2).transpose(1, 2)

    @override
    def groups(self, outputs: DETROutputs) -> list[PredictionGroup]:
        """A group for each layer, as each has another number of pairs."""
        predictions = zip(torch.split(outputs.logits, 1), torch.split(outputs.boxes, 1), strict=True)
        return [PredictionGroup(f"layer{number}", *both) for number, both in enumerate(predictions, 1)]

    @override
    def match(self, groups: Sequence[PredictionGroup], objects: SetTargets) -> list[Matching]:
        """The losses of a layer are divided by the number of its pairs."""
        matchings = []
        for group in groups:
            pairs = self.assigner.assign(group.logits, group.boxes, objects)
            count = mean_over_processes(objects.boxes.new_tensor(float(len(pairs.images)))).clamp(min=1)
            matchings.append(Matching(pairs, pairs, count, count))
        return matchings

    @override
    def group_losses(
        self, group: PredictionGroup, objects: SetTargets, matching: Matching, neutral: Tensor
    ) -> dict[str, Tensor]:
        """The L1 distance is that of corners."""
        losses = super().group_losses(group, objects, matching, neutral)
        boxes, targets = (cxcywh_to_xyxy(part) for part in matched_boxes(group, objects, matching.boxes))
        l1 = (boxes - targets).abs().sum(dim=(1, 2)) / matching.box_count
        return losses | {"l1": self.config.l1_weight * l1}

    @override
    def detect(self, outputs: DETROutputs, windows: Tensor) -> DetectionRows:
        """From all steps (section 4.1); the authors' code leaves out the last, where there is more than one."""
        selection = self.config.selection
        scores = self.classes.scores(at_least_float32(outputs.logits)).unbind(0)
        images, predictions, labels, best = best_pairs_of_levels(
            scores, selection.score_threshold, outputs.logits.shape[2]
        )
        boxes = (cxcywh_to_xyxy(outputs.boxes) * outputs.sides[:, None]).transpose(0, 1).flatten(1, 2)
        return select_detections(
            boxes[images, predictions], scores_of_pairs(labels, best, self.num_classes), images, windows, selection
        )

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        return {f"layers.{number}.classifier": rows(range(num_classes)) for number in range(len(self.layers))}

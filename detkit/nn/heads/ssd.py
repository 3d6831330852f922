"""SSD's predictions (Liu et al., arXiv 1512.02325): boxes and classes at default boxes of several levels.

Legend: B images, L levels, A priors of all levels together, M objects of one image, K classes. Index 0 of the
classifier is background and private to this file; label c of the data is index c + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config, UserError
from detkit.nn.assign.iou_matcher import match_bipartite
from detkit.nn.blocks import ConvBlock
from detkit.nn.heads.detections import select_detections
from detkit.ops.anchors import cached, grid_anchors, prior_anchors
from detkit.ops.coders import BoxCoder
from detkit.structures import Detections, ImageInfo, Size, Target


class SSDHeadConfig(Config):
    """Defaults: SSD300 on VOC. Lists have one entry a level, finest first; sizes are in input px."""

    min_sizes: tuple[float, ...] = (30, 60, 111, 162, 213, 264)
    max_sizes: tuple[float | None, ...] = (60, 111, 162, 213, 264, 315)  # null: no second square
    ratios: tuple[tuple[float, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))  # w/h, each with its inverse
    steps: tuple[float, ...] | None = (8, 16, 32, 64, 100, 300)  # input px between cells; null: input / map size
    clip_sides: bool = False  # no prior is larger than the input (torchvision)
    kernel_size: Literal[1, 3] = 3
    depthwise: bool = False  # SSDLite: a 3x3 depthwise convolution, then a 1x1
    norm_eps: float = Field(1e-5, ge=0)  # of the depthwise convolution's batch norm
    norm_momentum: float = Field(0.1, gt=0, le=1)
    fg_threshold: float = Field(0.5, ge=0, le=1)  # IoU
    negative_ratio: float = Field(3.0, ge=0)  # mined background priors for each positive one, in each image
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # 1 / variance
    clamp: float | None = None  # largest log-scale decoded; log(1000 / 16) in torchvision, none in Caffe
    score_threshold: float = Field(0.01, ge=0, le=1)
    top_k_per_class: int = Field(400, ge=1)
    nms_threshold: float = Field(0.45, ge=0, le=1)
    max_detections: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _one_entry_a_level(self) -> SSDHeadConfig:
        levels = len(self.min_sizes)
        for name in ("max_sizes", "ratios", "steps"):
            entries = getattr(self, name)
            if entries is not None and len(entries) != levels:
                raise ValueError(f"{name}: expected {levels} entries, as min_sizes has, found {len(entries)}")
        return self


@dataclass(frozen=True, eq=False)
class SSDOutputs:
    """
    logits  `[B, A, K + 1]`
    deltas  `[B, A, 4]`
    priors  `[A, 4]` xyxy in input px, by level, row, column and shape; they may leave the image
    """

    logits: Tensor
    deltas: Tensor
    priors: Tensor


class SSDHead(nn.Module):
    """A convolution for classes and one for boxes on every level."""

    def __init__(self, config: SSDHeadConfig, in_channels: Sequence[int], class_names: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.class_names = tuple(class_names)
        self.coder = BoxCoder(weights=config.box_weights, clamp=config.clamp)
        per_cell = [
            1 + (max_size is not None) + 2 * len(ratios)
            for max_size, ratios in zip(config.max_sizes, config.ratios, strict=True)
        ]
        self.classifier, self.regressor = (
            nn.ModuleList(self._predictor(c, count * each) for c, count in zip(in_channels, per_cell, strict=True))
            for each in (len(class_names) + 1, 4)
        )

    def _predictor(self, in_channels: int, out_channels: int) -> nn.Module:
        config = self.config
        kernel_size = 1 if config.depthwise else config.kernel_size
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        if not config.depthwise:
            return conv
        depthwise = ConvBlock(
            in_channels,
            in_channels,
            3,
            groups=in_channels,
            act="relu6",
            norm_eps=config.norm_eps,
            norm_momentum=config.norm_momentum,
        )
        return nn.Sequential(depthwise, conv)

    def forward(self, features: list[Tensor], size: Size) -> SSDOutputs:
        logits, deltas = (
            torch.cat([_by_prior(conv(x), width) for conv, x in zip(convs, features, strict=True)], dim=1)
            for convs, width in ((self.classifier, len(self.class_names) + 1), (self.regressor, 4))
        )
        sizes = [(level.shape[2], level.shape[3]) for level in features]
        return SSDOutputs(logits, deltas, self.priors(sizes, size, deltas.device))

    def priors(self, feature_sizes: Sequence[Size], size: Size, device: torch.device | None = None) -> Tensor:
        """`[A, 4]` xyxy in px of an input of `size` (h, w). Raises UserError for the steps of another size."""
        return _priors(self.config, tuple(feature_sizes), (size[0], size[1]), device or torch.device("cpu"))

    def criterion(self, outputs: SSDOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Section 2.2, eq. 1: both losses are divided by the matched priors of the batch, and are 0 without any."""
        labels, boxes, anchors = [], [], []
        for target in targets:
            objects, object_labels = target.objects()
            matches = match_bipartite(outputs.priors, objects, self.config.fg_threshold)
            positive = matches >= 0
            label = torch.zeros_like(matches)
            label[positive] = object_labels[matches[positive]] + 1
            labels.append(label)
            boxes.append(objects[matches[positive]])
            anchors.append(outputs.priors[positive])
        label = torch.stack(labels)
        positive = label > 0
        losses = F.cross_entropy(outputs.logits.float().flatten(0, 1), label.flatten(), reduction="none")
        losses = losses.view_as(label)
        chosen = positive | self._hard_background(losses.detach(), positive)
        wanted = self.coder.encode(torch.cat(boxes), torch.cat(anchors))
        box = F.smooth_l1_loss(outputs.deltas[positive].float(), wanted, reduction="sum")
        count = positive.sum().clamp(min=1)
        return {"ssd_class": losses[chosen].sum() / count, "ssd_box": box / count}

    def _hard_background(self, losses: Tensor, positive: Tensor) -> Tensor:
        """Bool `[B, A]`: in each image the background priors with the highest loss, `negative_ratio` a positive one."""
        wanted = (self.config.negative_ratio * positive.sum(dim=1, keepdim=True)).long()
        order = losses.masked_fill(positive, -torch.inf).argsort(dim=1, descending=True)
        rank = torch.empty_like(order)
        rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
        return (rank < wanted) & ~positive

    @torch.no_grad()
    def postprocess(self, outputs: SSDOutputs, infos: Sequence[ImageInfo]) -> list[Detections]:
        scores = outputs.logits.float().softmax(dim=-1)[..., 1:]
        boxes = [self.coder.decode(deltas.float(), outputs.priors) for deltas in outputs.deltas]
        return [
            select_detections(
                *candidates,
                self.class_names,
                score_threshold=self.config.score_threshold,
                nms_threshold=self.config.nms_threshold,
                max_detections=self.config.max_detections,
                top_k_per_class=self.config.top_k_per_class,
            )
            for candidates in zip(boxes, scores, infos, strict=True)
        ]


@cached
def _priors(config: SSDHeadConfig, feature_sizes: tuple[Size, ...], size: Size, device: torch.device) -> Tensor:
    levels = []
    for i, (height, width) in enumerate(feature_sizes):
        largest = max(size) if config.clip_sides else None
        cells = prior_anchors(config.min_sizes[i], config.max_sizes[i], config.ratios[i], largest=largest)
        step = (config.steps[i],) * 2 if config.steps else (size[0] / height, size[1] / width)
        if abs(height - size[0] / step[0]) >= 1 or abs(width - size[1] / step[1]) >= 1:
            raise UserError(
                f"head.steps: {step[0]:g} px do not fit level {i}, of {height} x {width} cells, and an input of "
                f"{size[0]} x {size[1]} px; give the steps of this size, or null for input / map size"
            )
        levels.append(grid_anchors(cells, (height, width), step, offset=0.5))
    return torch.cat(levels).to(device)


def _by_prior(predicted: Tensor, width: int) -> Tensor:
    """`[B, A_l * width, H, W]` -> `[B, H * W * A_l, width]`."""
    return predicted.permute(0, 2, 3, 1).reshape(len(predicted), -1, width)

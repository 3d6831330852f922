"""Region Proposal Network (Ren et al., arXiv 1506.01497, section 3.1).

Legend: B images, L levels, A anchors of all levels together, N boxes of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.assign.iou_matcher import BETWEEN, match_by_iou, sample_matches
from detkit.ops.anchors import cached, cell_anchors, grid_anchors
from detkit.ops.boxes import clip_boxes, valid_boxes
from detkit.ops.coders import BoxCoder
from detkit.ops.nms import class_aware_nms
from detkit.structures import ImageInfo, Size, Target


class AnchorConfig(Config):
    """Anchors of every cell, a list of sizes for each level. Defaults: torchvision's R50-FPN."""

    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))  # input px, square root of the area
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # h / w
    rounding: Literal["none", "corners", "sides"] = "corners"  # Detectron2, torchvision, py-faster-rcnn
    spacing: Literal["stride", "image"] = "image"  # input px between cells: the stride (Detectron2, py-faster-rcnn), or
    # padded image size // feature size (torchvision), which is smaller where a level rounds its size up
    offset: float = 0.0  # centre of a cell's anchors in strides; 0.5 for py-faster-rcnn in continuous pixels


class RPNConfig(Config):
    """Defaults: torchvision's `fasterrcnn_resnet50_fpn`."""

    anchors: AnchorConfig = AnchorConfig()
    objectness: Literal["sigmoid", "softmax"] = "sigmoid"  # softmax: two channels an anchor, as in the paper
    channels: int | None = None  # of the 3x3 convolution; null: those of the features
    fg_threshold: float = Field(0.7, ge=0, le=1)  # IoU, section 3.1.2
    bg_threshold: float = Field(0.3, ge=0, le=1)
    only_inside_anchors: bool = False  # train on anchors inside the image only (the paper); null effect at test
    batch_size_per_image: int = Field(256, ge=1)  # sampled anchors
    positive_fraction: float = Field(0.5, ge=0, le=1)
    smooth_l1_beta: float = Field(1 / 9, ge=0)  # sigma 3
    pre_nms_top_k_train: int = Field(2000, ge=1)  # per level
    pre_nms_top_k_test: int = Field(1000, ge=1)
    post_nms_top_k_train: int = Field(2000, ge=1)  # all levels together
    post_nms_top_k_test: int = Field(1000, ge=1)
    nms_threshold: float = Field(0.7, ge=0, le=1)
    score_threshold: float = Field(0.0, ge=0, le=1)
    min_size: float = Field(1e-3, ge=0)  # original px; 16 in py-faster-rcnn

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RPNConfig:
        if self.bg_threshold > self.fg_threshold:
            raise ValueError(f"bg_threshold {self.bg_threshold} is above fg_threshold {self.fg_threshold}")
        return self


@cached
def pyramid_anchors(
    config: AnchorConfig,
    strides: tuple[int, ...],
    feature_sizes: tuple[Size, ...],
    padded_size: Size,
    device: torch.device,
) -> Tensor:
    """Float32 `[A, 4]` xyxy in input px of all levels, one of `feature_sizes` each; images are padded to
    `padded_size`."""
    levels = []
    for sizes, stride, (height, width) in zip(config.sizes, strides, feature_sizes, strict=True):
        cells = cell_anchors(sizes, config.ratios, rounding=config.rounding)
        spacing = (padded_size[0] // height, padded_size[1] // width) if config.spacing == "image" else stride
        levels.append(grid_anchors(cells, (height, width), spacing, offset=config.offset))
    return torch.cat(levels).to(device)


@dataclass(frozen=True, eq=False)
class RPNOutputs:
    """
    logits       `[B, A]` objectness
    deltas       `[B, A, 4]`
    anchors      `[A, 4]` xyxy in input px
    level_sizes  anchors of each level
    input_sizes  B x (h, w)
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    level_sizes: tuple[int, ...]
    input_sizes: tuple[Size, ...]


class RPN(nn.Module):
    """A 3x3 convolution and two 1x1 ones slide over every level with shared weights."""

    def __init__(self, config: RPNConfig, in_channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        anchors = config.anchors
        if len(anchors.sizes) != len(strides):
            raise ValueError(f"anchors.sizes: expected {len(strides)} lists, one a level, got {len(anchors.sizes)}")
        per_cell = {len(sizes) for sizes in anchors.sizes}
        if len(per_cell) != 1:
            raise ValueError(f"anchors.sizes: expected as many sizes on every level, got {sorted(per_cell)}")
        num_anchors = per_cell.pop() * len(anchors.ratios)
        channels = config.channels or in_channels
        self.config = config
        self.strides = tuple(strides)
        self.coder = BoxCoder()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, num_anchors * (2 if config.objectness == "softmax" else 1), 1)
        self.deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for conv in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor], input_sizes: Sequence[Size], padded_size: Size) -> RPNOutputs:
        logits, deltas = [], []
        for level in features:
            hidden = F.relu(self.conv(level))
            logits.append(self._logits(self.objectness(hidden)))
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)))
        sizes = tuple((level.shape[2], level.shape[3]) for level in features)
        return RPNOutputs(
            torch.cat(logits, dim=1),
            torch.cat(deltas, dim=1),
            pyramid_anchors(self.config.anchors, self.strides, sizes, padded_size, deltas[0].device),
            tuple(level.shape[1] for level in logits),
            tuple(input_sizes),
        )

    def _logits(self, scores: Tensor) -> Tensor:
        """`[B, A or 2A, H, W]` -> `[B, H * W * A]`. A softmax over two channels is a sigmoid of their difference."""
        if self.config.objectness == "softmax":
            background, foreground = scores.chunk(2, dim=1)
            scores = foreground - background
        return scores.permute(0, 2, 3, 1).flatten(1)

    def criterion(self, outputs: RPNOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Objectness and box loss, both averaged over the sampled anchors of the batch (eq. 1, as in the code)."""
        config, logits, labels, deltas, wanted = self.config, [], [], [], []
        for i, target in enumerate(targets):
            objects, _ = target.objects()
            matches = self._match(outputs.anchors, objects, outputs.input_sizes[i])
            positive, background = sample_matches(matches, config.batch_size_per_image, config.positive_fraction)
            sampled = torch.cat([positive, background])
            logits.append(outputs.logits[i, sampled])
            labels.append((matches[sampled] >= 0).to(torch.float32))
            deltas.append(outputs.deltas[i, positive])
            wanted.append(self.coder.encode(objects[matches[positive]], outputs.anchors[positive]))
        num_sampled = max(1, sum(len(label) for label in labels))
        objectness = F.binary_cross_entropy_with_logits(torch.cat(logits).float(), torch.cat(labels), reduction="sum")
        box = F.smooth_l1_loss(
            torch.cat(deltas).float(), torch.cat(wanted), beta=config.smooth_l1_beta, reduction="sum"
        )
        return {"rpn_objectness": objectness / num_sampled, "rpn_box": box / num_sampled}

    def _match(self, anchors: Tensor, objects: Tensor, input_size: Size) -> Tensor:
        match = partial(
            match_by_iou,
            objects=objects,
            fg_threshold=self.config.fg_threshold,
            bg_threshold=(0.0, self.config.bg_threshold),
            best_for_each_object=True,
        )
        if not self.config.only_inside_anchors:
            return match(anchors)
        height, width = input_size
        x1, y1, x2, y2 = anchors.unbind(dim=1)
        inside = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
        matches = torch.full_like(x1, BETWEEN, dtype=torch.int64)
        matches[inside] = match(anchors[inside])  # so that an object's best anchor is its best one inside
        return matches

    @torch.no_grad()
    def propose(self, outputs: RPNOutputs, infos: Sequence[ImageInfo]) -> list[Tensor]:
        """Proposals of each image, float32 `[N, 4]` in input pixels, best first; no gradient flows through them."""
        config = self.config
        top_k = config.pre_nms_top_k_train if self.training else config.pre_nms_top_k_test
        keep_k = config.post_nms_top_k_train if self.training else config.post_nms_top_k_test
        chosen, levels, start = [], [], 0
        for level, size in enumerate(outputs.level_sizes):
            best = outputs.logits[:, start : start + size].topk(min(top_k, size), dim=1).indices + start
            chosen.append(best)
            levels.append(torch.full_like(best, level))
            start += size
        indices, level_of = torch.cat(chosen, dim=1), torch.cat(levels, dim=1)

        proposals = []
        for i, info in enumerate(infos):
            index = indices[i]
            boxes = self.coder.decode(outputs.deltas[i, index].float(), outputs.anchors[index])
            boxes = clip_boxes(boxes, info.input_size)
            scores = outputs.logits[i, index].float().sigmoid()
            keep = valid_boxes(boxes, config.min_size * min(info.scale)) & (scores >= config.score_threshold)
            boxes, scores, levels_kept = boxes[keep], scores[keep], level_of[i, keep]
            proposals.append(boxes[class_aware_nms(boxes, scores, levels_kept, config.nms_threshold)[:keep_k]])
        return proposals

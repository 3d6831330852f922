"""Region Proposal Network (Ren et al., arXiv 1506.01497, section 3.1).

Legend: B images, L levels, A_l anchors of level l, A of all levels together, N candidates of one image, R proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.anchors import AnchorConfig, AnchorGrid
from detkit.nn.assign.assignment import BACKGROUND, Assignment, sample
from detkit.nn.assign.iou import IoUAssigner
from detkit.nn.blocks import per_anchor
from detkit.nn.losses import smooth_l1_loss
from detkit.nn.outputs import register_outputs
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import best_of_levels, best_rows, images_of_rows
from detkit.ops.boxes import clip_to_windows, valid_boxes
from detkit.ops.coders import BoxCoder
from detkit.ops.nms import class_aware_nms
from detkit.ops.rows import to_rows
from detkit.ops.suppress import suppress
from detkit.structures import Size, Target


class RPNConfig(Config):
    """Defaults: torchvision's `fasterrcnn_resnet50_fpn`."""

    at_test: ClassVar[tuple[str, ...]] = (
        "pre_nms_top_k_test",
        "post_nms_top_k_test",
        "nms_threshold",
        "score_threshold",
        "min_size",
    )

    anchors: AnchorConfig = AnchorConfig()
    objectness: Literal["sigmoid", "softmax"] = "sigmoid"  # softmax: two channels an anchor, as in the paper
    channels: int | None = None  # of the 3x3 convolutions; null: those of the features
    conv_depth: int = Field(1, ge=1)  # 3x3 convolutions before the predictions; torchvision's version 2 has two
    fg_threshold: float = Field(0.7, ge=0, le=1)  # IoU, section 3.1.2
    bg_threshold: float = Field(0.3, ge=0, le=1)
    # part of an anchor that must lie inside an ignored object (crowd, difficult) for it to be neutral instead of
    # background; null: background, as in py-faster-rcnn and torchvision
    ignored_iof: float | None = Field(None, gt=0, le=1)
    only_inside_anchors: bool = False  # train on anchors inside the image only (the paper); no effect at test
    batch_size_per_image: int = Field(256, ge=1)  # sampled anchors
    positive_fraction: float = Field(0.5, ge=0, le=1)
    smooth_l1_beta: float = Field(1 / 9, ge=0)  # sigma 3
    pre_nms_top_k_train: int = Field(2000, ge=1)  # per level
    pre_nms_top_k_test: int = Field(1000, ge=1)
    post_nms_top_k_train: int = Field(2000, ge=1)  # all levels together
    post_nms_top_k_test: int = Field(1000, ge=1)
    nms_threshold: float = Field(0.7, ge=0, le=1)
    score_threshold: float = Field(0.0, ge=0, le=1)
    min_size: float = Field(1e-3, ge=0)  # input px, of both sides of a proposal

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RPNConfig:
        if self.bg_threshold > self.fg_threshold:
            raise ValueError(f"bg_threshold {self.bg_threshold} is above fg_threshold {self.fg_threshold}")
        return self


@register_outputs
@dataclass(frozen=True, eq=False)
class RPNOutputs:
    """
    logits   L x `[B, A_l]` objectness
    deltas   `[B, A, 4]`
    anchors  `[A, 4]` xyxy in input px
    windows  float `[B, 4]` xyxy in input px: where each picture lies on its canvas
    """

    logits: tuple[Tensor, ...]
    deltas: Tensor
    anchors: Tensor
    windows: Tensor


class RPN(nn.Module):
    """A 3x3 convolution, or several, and two 1x1 ones slide over every level with shared weights."""

    def __init__(self, config: RPNConfig, in_channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        channels = config.channels or in_channels
        self.config = config
        self.coder = BoxCoder()
        self.assigner = IoUAssigner(
            config.fg_threshold, (0.0, config.bg_threshold), best_for_each_object=True, ignored_iof=config.ignored_iof
        )
        self.anchors = AnchorGrid(config.anchors, strides)
        num_anchors = self.anchors.per_cell
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.further_convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(config.conv_depth - 1)
        )
        self.objectness = nn.Conv2d(channels, num_anchors * (2 if config.objectness == "softmax" else 1), 1)
        self.deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for conv in (self.conv, *self.further_convs, self.objectness, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor], windows: Tensor, canvas: Size) -> RPNOutputs:
        """
        features  L levels `[B, C, H_l, W_l]`, finest first
        windows   float `[B, 4]` xyxy in input px: where each picture lies on its canvas
        canvas    (h, w) in input px of what the features were computed from
        """
        logits, deltas = [], []
        for level in features:
            hidden = F.relu(self.conv(level))
            for conv in self.further_convs:
                hidden = F.relu(conv(hidden))
            logits.append(self._logits(self.objectness(hidden)))
            deltas.append(per_anchor(self.deltas(hidden), 4))
        anchors = self.anchors([(level.shape[2], level.shape[3]) for level in features], canvas)
        return RPNOutputs(tuple(logits), torch.cat(deltas, dim=1), anchors, windows)

    def _logits(self, scores: Tensor) -> Tensor:
        """`[B, a or 2a, H, W]` for a anchors a cell -> `[B, H * W * a]`.

        A softmax over two channels is a sigmoid of their difference.
        """
        if self.config.objectness == "softmax":
            background, foreground = scores.chunk(2, dim=1)
            scores = foreground - background
        return per_anchor(scores, 1).flatten(1)

    def criterion(self, outputs: RPNOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Objectness and box loss, both averaged over the sampled anchors of the batch (eq. 1, as in the code)."""
        config, all_logits, anchors = self.config, torch.cat(outputs.logits, dim=1), outputs.anchors
        logits, labels, deltas, target_deltas = [], [], [], []
        for i, target in enumerate(targets):
            assignment = self._assign(anchors, target, outputs.windows[i])
            positive, background = sample(assignment, config.batch_size_per_image, config.positive_fraction)
            logits.append(all_logits[i, torch.cat([positive, background])])
            labels += [torch.ones_like(positive), torch.zeros_like(background)]
            deltas.append(outputs.deltas[i, positive])
            boxes = target.not_ignored().boxes[assignment.index[positive]]
            target_deltas.append(self.coder.encode(boxes, anchors[positive]))
        label = torch.cat(labels).float()
        objectness = F.binary_cross_entropy_with_logits(torch.cat(logits).float(), label, reduction="sum")
        box = smooth_l1_loss(torch.cat(deltas).float(), torch.cat(target_deltas), config.smooth_l1_beta).sum()
        num_sampled = max(1, len(label))
        return {"rpn_objectness": objectness / num_sampled, "rpn_box": box / num_sampled}

    def _assign(self, anchors: Tensor, target: Target, window: Tensor) -> Assignment:
        if not self.config.only_inside_anchors:
            return self.assigner.assign(anchors, target)
        inside = ((anchors[:, :2] >= window[:2]) & (anchors[:, 2:] <= window[2:])).all(dim=1)
        index = torch.full_like(inside, BACKGROUND, dtype=torch.int64)
        weight = torch.zeros_like(inside, dtype=torch.float32)
        # Only those inside are given to the assigner, so that an object's best anchor is its best one inside.
        among_inside = self.assigner.assign(anchors[inside], target)
        index[inside], weight[inside] = among_inside.index, among_inside.weight
        return Assignment(index, weight)

    @torch.no_grad()
    def propose(self, outputs: RPNOutputs) -> Regions:
        """Proposals in input px, R rows an image, best first; no gradient flows through them."""
        config, num_images, num_levels = self.config, outputs.windows.shape[0], len(outputs.logits)
        limit = config.post_nms_top_k_train if self.training else config.post_nms_top_k_test
        top_k = config.pre_nms_top_k_train if self.training else config.pre_nms_top_k_test
        logits, anchors, levels = best_of_levels(outputs.logits, top_k)
        deltas = outputs.deltas.gather(1, anchors[..., None].expand(-1, -1, 4))
        boxes = self.coder.decode(deltas.flatten(0, 1).float(), outputs.anchors[anchors.flatten()])
        images = images_of_rows(num_images, anchors.shape[1], boxes.device)
        boxes = clip_to_windows(boxes, outputs.windows[images])
        scores = logits.flatten().float().sigmoid()
        valid = valid_boxes(boxes, config.min_size) & (scores >= config.score_threshold)
        if torch.compiler.is_compiling():
            return self._best_proposals(boxes, torch.where(valid, scores, -torch.inf), levels, num_images, limit)
        rows = torch.nonzero(valid).squeeze(1)
        groups = (images * num_levels + levels.repeat(num_images))[rows]
        rows = rows[class_aware_nms(boxes[rows], scores[rows], groups, config.nms_threshold)]
        (proposals,), counts = to_rows([boxes[rows]], images[rows], num_images, limit)
        filled = torch.arange(limit, device=counts.device) < counts[:, None]
        return Regions(proposals.flatten(0, 1), images_of_rows(num_images, limit, counts.device), filled.flatten())

    def _best_proposals(self, boxes: Tensor, scores: Tensor, levels: Tensor, num_images: int, limit: int) -> Regions:
        """What `propose` does last, for a program that is exported: no shape depends on the scores.

        boxes, scores  `[B * M, 4]` and `[B * M]`, -inf where a box is not valid
        levels         `[M]`
        """
        boxes, scores = boxes.view(num_images, -1, 4), scores.view(num_images, -1)
        on_level = torch.arange(len(self.anchors.strides), device=levels.device)[:, None] == levels
        by_level = torch.where(on_level, scores[:, None], -torch.inf)  # [B, L, M]
        stays = suppress(boxes, by_level, self.config.nms_threshold).any(dim=1)
        _, rows, filled = best_rows(torch.where(stays, scores, -torch.inf), limit)
        proposals = torch.where(filled[..., None], boxes.gather(1, rows[..., None].expand(-1, -1, 4)), 0.0)
        return Regions(proposals.flatten(0, 1), images_of_rows(num_images, limit, rows.device), filled.flatten())

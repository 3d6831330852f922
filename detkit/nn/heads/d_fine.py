"""The head of D-FINE (Peng et al., arXiv 2410.13842): each decoder layer refines distributions of how far the edges of
a first box move.

Legend: B images, S cells of all levels together, Q queries, L decoder layers, K classes, W width, R + 1 distances of an
edge (`detkit.nn.distributions`). Boxes are cxcywh in parts of the picture's sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.assign.hungarian import Pairs, SetTargets
from detkit.nn.assign.union import union_of
from detkit.nn.blocks import Activation, ConvBlock
from detkit.nn.deformable import DeformableAttention, DeformableTransformerConfig, Levels, moved
from detkit.nn.denoising import DenoisingConfig
from detkit.nn.distributions import EdgeConfig, Edges, edge_distillation_loss
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.denoised import DenoisedOutputs, DenoisedSetHead, DenoisedSetHeadConfig, Queries
from detkit.nn.heads.quality_classes import QualityClasses
from detkit.nn.heads.rt_detr import RTDETRSelectionConfig, RTDETRTransformerConfig
from detkit.nn.heads.set_head import (
    DETROutputs,
    Matching,
    PredictionGroup,
    classifier_with_prior,
    matched_boxes,
    mean_over_processes,
)
from detkit.nn.losses import MatchabilityLossConfig, VarifocalLossConfig, distribution_focal_loss
from detkit.nn.outputs import register_outputs
from detkit.nn.transformer import MLP, Attention, FeedForward, zero_output
from detkit.ops.boxes import at_least_float32, cxcywh_to_xyxy
from detkit.ops.iou import box_iou

LIKELIEST = 4  # probabilities of an edge that tell how good a box is
QUALITY_WIDTH = 64


class DFINETransformerConfig(RTDETRTransformerConfig):
    points: int | tuple[int, ...] = (3, 6, 3)


class DFINEDenoisingConfig(DenoisingConfig):
    swap_corners: bool = True


class DFINEHeadConfig(DenoisedSetHeadConfig):
    """Defaults: D-FINE L; S has 3 decoder layers, M 4. DEIM (arXiv 2412.04234): `matchability: {}` and
    `transformer: {act: swish}`."""

    name: Literal["d_fine"] = "d_fine"
    transformer: DFINETransformerConfig = DFINETransformerConfig()
    denoising: DFINEDenoisingConfig | None = DFINEDenoisingConfig()
    edges: EdgeConfig = EdgeConfig()
    varifocal: VarifocalLossConfig = VarifocalLossConfig()  # loss of the classes
    matchability: MatchabilityLossConfig | None = None  # the loss of the classes instead of `varifocal` (DEIM)
    localization_weight: float = Field(0.15, ge=0)  # of the loss of the edges' distributions
    distillation_weight: float = Field(1.5, ge=0)  # of their distance from those of the last layer
    distillation_temperature: float = Field(5.0, gt=0)
    selection: RTDETRSelectionConfig = RTDETRSelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class DFINEOutputs(DETROutputs):
    """
    edges         logits of the edges' distributions, `[L, B, Q, 4 * (R + 1)]`
    first_logits  `[1, B, Q, K]`: of the first layer, without the edges' part
    first_boxes   `[1, B, Q, 4]`: whose edges all layers move
    """

    edges: Tensor
    first_logits: Tensor
    first_boxes: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class EdgeGroup(PredictionGroup):
    """
    edges        `[L, B, Q, 4 * (R + 1)]`
    first_boxes  `[1, B, Q, 4]`
    """

    edges: Tensor
    first_boxes: Tensor


@dataclass(frozen=True, eq=False)
class EdgeMatching(Matching):
    """`boxes` are the same in every layer.

    matched_share  scalar in [0, 1]: of the loss of matched queries in the distillation; the rest is of the others
    """

    matched_share: Tensor


class GatedDecoderLayer(nn.Module):
    """Queries attend to each other, then to points of the memory around their boxes; gates mix the two."""

    def __init__(self, config: DeformableTransformerConfig, levels: int) -> None:
        super().__init__()
        width = config.width
        self.self_attention = Attention(width, config.heads, config.dropout)
        self.self_norm = nn.LayerNorm(width)
        points = config.points_of(levels)
        self.cross_attention = DeformableAttention(width, config.heads, points, config.sampling, project=False)
        self.gates = nn.Linear(2 * width, 2 * width)
        nn.init.zeros_(self.gates.weight)  # half of each
        nn.init.zeros_(self.gates.bias)
        self.cross_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(width, config.feedforward, config.dropout, config.act)

    def forward(
        self, hidden: Tensor, query_pos: Tensor, positions: Tensor, memory: Tensor, levels: Levels, mask: Tensor | None
    ) -> Tensor:
        """Arguments: see `DeformableDecoderLayer`."""
        with_pos = hidden + query_pos
        hidden = self.self_norm(hidden + self.dropout(self.self_attention(with_pos, with_pos, hidden, mask)))
        attended = self.cross_attention(hidden + query_pos, levels.on_canvas(positions), memory, levels)
        attended = self.dropout(attended)
        old, new = self.gates(torch.cat([hidden, attended], dim=-1)).sigmoid().chunk(2, dim=-1)
        y: Tensor = self.feedforward(self.cross_norm(old * hidden + new * attended))
        return y


class EdgeQuality(nn.Module):
    """What the sharpness of the edges' distributions adds to all classes ("LQE"); nothing before training."""

    def __init__(self, act: Activation) -> None:
        super().__init__()
        self.mlp = zero_output(MLP(4 * (LIKELIEST + 1), QUALITY_WIDTH, 1, act=act))

    def forward(self, edges: Tensor) -> Tensor:
        """Logits `[B, Q, 4 * (R + 1)]` -> `[B, Q, 1]`"""
        probabilities = at_least_float32(edges).reshape(*edges.shape[:2], 4, -1).softmax(dim=-1)
        likeliest = probabilities.topk(LIKELIEST, dim=-1).values
        y: Tensor = self.mlp(torch.cat([likeliest, likeliest.mean(dim=-1, keepdim=True)], dim=-1).flatten(2))
        return y


class DFINEHead(DenoisedSetHead):
    config: DFINEHeadConfig

    def __init__(self, config: DFINEHeadConfig, in_channels: Sequence[int], num_classes: int) -> None:
        loss = config.matchability or config.varifocal
        super().__init__(config, num_classes, QualityClasses(num_classes, config.focal, loss))
        transformer, act = config.transformer, config.transformer.act
        width, layers = transformer.width, range(transformer.decoder_layers)
        self.project = nn.ModuleList(
            nn.Identity() if channels == width else ConvBlock(channels, width, 1, act="linear")
            for channels in in_channels
        )
        self.query_pos = MLP(4, 2 * width, width, act=act)
        self.decoder = nn.ModuleList(GatedDecoderLayer(transformer, len(in_channels)) for _ in layers)
        self.classifiers = nn.ModuleList(classifier_with_prior(width, num_classes, config.class_prior) for _ in layers)
        self.first_regressor = zero_output(MLP(width, width, width, 4, act=act))
        self.edges = Edges(config.edges)
        outputs = 4 * (config.edges.steps + 1)
        self.regressors = nn.ModuleList(zero_output(MLP(width, width, width, outputs, act=act)) for _ in layers)
        self.qualities = nn.ModuleList(EdgeQuality(act) for _ in layers)
        for module in (*self.query_pos, *self.proposer.content):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    @override
    def encode(self, features: list[Tensor], levels: Levels) -> Tensor:
        projected = [project(level) for project, level in zip(self.project, features, strict=True)]
        return torch.cat([level.flatten(2).transpose(1, 2) for level in projected], dim=1)

    @override
    def decode(self, queries: Queries, memory: Tensor, levels: Levels, sides: Tensor) -> DFINEOutputs:
        hidden, positions = queries.content, queries.anchors.sigmoid()
        first_logits, first_boxes = hidden, positions
        before = layer_edges = torch.zeros_like(hidden[..., :1])  # nothing yet
        logits, boxes, edges = [], [], []
        for number, layer in enumerate(self.decoder):
            query_pos = self.query_pos(positions.to(hidden.dtype)).clamp(-10, 10)
            hidden = layer(hidden, query_pos, positions, memory, levels, queries.mask)
            if number == 0:
                first_logits = self.classifiers[0](hidden)
                first_boxes = moved(positions, at_least_float32(self.first_regressor(hidden)))
            layer_edges = layer_edges + self.regressors[number](hidden + before)
            layer_boxes = self.edges.boxes(first_boxes.detach(), layer_edges)
            logits.append(self.classifiers[number](hidden) + self.qualities[number](layer_edges))
            boxes.append(layer_boxes)
            edges.append(layer_edges)
            positions, before = layer_boxes.detach(), hidden.detach()
        return DFINEOutputs(
            torch.stack(logits), torch.stack(boxes), sides, torch.stack(edges), first_logits[None], first_boxes[None]
        )

    @override
    def groups(self, outputs: DenoisedOutputs) -> list[PredictionGroup]:
        groups: list[PredictionGroup] = []
        for group in super().groups(outputs):
            part = {"detr": outputs.decoder, "denoising": outputs.denoising}.get(group.name)
            if isinstance(part, DFINEOutputs):
                first = replace(group, name=f"{group.name}_first", logits=part.first_logits, boxes=part.first_boxes)
                pairs = _in_layers(group.pairs, 1) if group.pairs else None
                groups += [EdgeGroup(**vars(group), edges=part.edges, first_boxes=part.first_boxes)]
                groups += [replace(first, pairs=pairs)]
            else:
                groups.append(group)
        return groups

    @override
    def match(self, groups: Sequence[PredictionGroup], objects: SetTargets) -> list[Matching]:
        """Classes as ever; boxes answer for the objects of all groups together, but for denoising ones."""
        matchings = super().match(groups, objects)
        own = [matching.classes for group, matching in zip(groups, matchings, strict=True) if group.pairs is None]
        union = union_of(own)
        matched = objects.boxes.new_tensor(float(len(union.images)))
        ratio = torch.sqrt(groups[0].boxes[0, ..., 0].numel() / matched - 1)  # of numbers of the others to the matched
        count = mean_over_processes(matched.clone()).clamp(min=1)
        return [
            EdgeMatching(
                matching.classes,
                matching.boxes if group.pairs else _in_layers(union, len(group.boxes)),
                matching.class_count,
                matching.box_count if group.pairs else count,
                1 / (1 + ratio),
            )
            for group, matching in zip(groups, matchings, strict=True)
        ]

    @override
    def group_losses(
        self, group: PredictionGroup, objects: SetTargets, matching: Matching, neutral: Tensor
    ) -> dict[str, Tensor]:
        losses = super().group_losses(group, objects, matching, neutral)
        if isinstance(group, EdgeGroup) and isinstance(matching, EdgeMatching):
            losses |= self._edge_losses(group, objects, matching)
        return losses

    def _edge_losses(self, group: EdgeGroup, objects: SetTargets, matching: EdgeMatching) -> dict[str, Tensor]:
        """Fine-grained localization (section 4.1) and decoupled distillation (section 4.2), which ends at the layer
        before the last; each is `[L]` or `[1]`."""
        pairs = matching.boxes
        edges = at_least_float32(group.edges).reshape(*group.boxes.shape, -1)
        with torch.no_grad():
            boxes, targets = matched_boxes(group, objects, pairs)
            quality = box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets), paired=True)
            goals = self.edges.targets(group.first_boxes[0, pairs.images, pairs.predictions[0]], targets[0])
        localization = distribution_focal_loss(edges[pairs.rows()], goals.expand(len(edges), -1, -1))
        localization = (quality[..., None] * localization).sum(dim=(1, 2)) / matching.box_count
        distillation = self._distillation(group, edges, pairs, quality, matching.matched_share)
        return {
            "localization": self.config.localization_weight * localization,
            "distillation": self.config.distillation_weight * distillation,
        }

    def _distillation(
        self, group: EdgeGroup, edges: Tensor, pairs: Pairs, quality: Tensor, matched_share: Tensor
    ) -> Tensor:
        """`[1]`: each query weighs as much as its box overlaps its object, or without one as the last layer is certain.

        edges    `[L, B, Q, 4, R + 1]`
        quality  `[L, P]`
        """
        weights = at_least_float32(group.logits[-1].detach()).sigmoid().amax(dim=-1).repeat(len(edges), 1, 1)
        weights[pairs.rows()] = quality
        matched = torch.zeros_like(weights[0])
        matched[pairs.images, pairs.predictions[0]] = 1.0
        losses = edge_distillation_loss(edges[:-1], edges[-1:], self.config.distillation_temperature).mean(dim=-1)
        losses = (weights[:-1] * losses).sum(dim=0)
        means = [(losses * part).sum() / part.sum().clamp(min=1) for part in (matched, 1 - matched)]
        return (matched_share * means[0] + (1 - matched_share) * means[1])[None]

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        classifiers = {f"classifiers.{number}": rows(range(num_classes)) for number in range(len(self.classifiers))}
        return {**super().class_rows(num_classes), **classifiers}


def _in_layers(pairs: Pairs, count: int) -> Pairs:
    """Pairs that are the same in all layers, in `count` layers."""
    predictions, objects = (part[:1].expand(count, -1) for part in (pairs.predictions, pairs.objects))
    return Pairs(pairs.images, predictions, objects)

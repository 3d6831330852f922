"""The head of LW-DETR (Chen et al., arXiv 2406.03459) and of RF-DETR: a decoder whose queries start at the likeliest
cells, with several groups of queries in training (Group DETR, Chen et al., arXiv 2207.13085).

Legend: B images, S cells of all levels together, G groups of queries (1 outside training) of Q each,
W width, L decoder layers, K classes. Boxes are cxcywh in parts of the picture's sides, padding excluded; no sigmoid
holds them inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.deformable import (
    DeformableAttention,
    DeformableDecoderLayer,
    DeformableTransformerConfig,
    Levels,
    box_pos_embed,
)
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.proposing import CellProposer
from detkit.nn.heads.quality_classes import QualityClasses
from detkit.nn.heads.set_head import (
    DETROutputs,
    Matching,
    PredictionGroup,
    SetHead,
    SetHeadConfig,
    SetSelectionConfig,
    classifier_with_prior,
    mean_over_processes,
    picture_sides,
)
from detkit.nn.losses import FocalLossConfig, IoUAwareLossConfig
from detkit.nn.outputs import register_outputs
from detkit.nn.transformer import MLP, Attention, zero_output
from detkit.ops.boxes import at_least_float32
from detkit.structures import Size


class LWDETRTransformerConfig(DeformableTransformerConfig):
    encoder_layers: int = Field(0, ge=0, le=0)  # the encoder is the backbone
    decoder_layers: int = Field(3, ge=1)
    feedforward: int = Field(2048, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    points: int | tuple[int, ...] = 2
    cross_heads: int = Field(16, ge=1)  # of the attention of queries to cells; `heads`: of queries to each other

    @model_validator(mode="after")
    def _cross_heads_divide(self) -> LWDETRTransformerConfig:
        if self.width % self.cross_heads:
            raise ValueError(f"width: expected a multiple of cross_heads ({self.cross_heads}), found {self.width}")
        return self


class LWDETRSelectionConfig(SetSelectionConfig):
    max_detections: int = Field(300, ge=1)


class LWDETRHeadConfig(SetHeadConfig):
    """Defaults: LW-DETR small and medium, and RF-DETR small."""

    name: Literal["lw_detr"] = "lw_detr"
    transformer: LWDETRTransformerConfig = LWDETRTransformerConfig()
    num_queries: int = Field(300, ge=1)  # predictions of an image; no more than there are cells
    groups: int = Field(13, ge=1)  # of `num_queries` queries each in training; only the first one is used after it
    class_cost: float = Field(2.0, ge=0)
    focal: FocalLossConfig = FocalLossConfig()  # of the cost of a class in the matching
    iou_aware: IoUAwareLossConfig = IoUAwareLossConfig()
    class_prior: float = Field(0.01, gt=0, lt=1)  # probability of a class before training
    proposal_side: float = Field(0.05, gt=0, lt=1)  # of the finest level's starting boxes, in parts of the picture's
    selection: LWDETRSelectionConfig = LWDETRSelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class LWDETROutputs(DETROutputs):
    """
    logits     `[L, B, G Q, K]`, group after group
    boxes      at least float32 `[L, B, G Q, 4]`
    proposals  of the cells that the queries of each group start at, `[G, B, Q, ...]`
    """

    proposals: DETROutputs


@dataclass(frozen=True, eq=False)
class QueryGroups(PredictionGroup):
    """Predictions `[L G, B, Q, ...]`: those of each group of queries are matched by themselves."""

    groups: int = 1


def scaled(boxes: Tensor, by: Tensor) -> Tensor:
    """Boxes `[..., 4]` moved by parts of their sides, with the logarithms of factors on these."""
    centers = by[..., :2] * boxes[..., 2:] + boxes[..., :2]
    return torch.cat([centers, by[..., 2:].exp() * boxes[..., 2:]], dim=-1)


class ScalingProposer(CellProposer):
    """Its anchors are boxes and no logits; those of cells that propose nothing have no sides."""

    @override
    def anchors(self, boxes: Tensor, proposing: Tensor, move: Tensor) -> Tensor:
        return scaled(boxes.masked_fill(~proposing, 0.0), move)


class GroupedAttention(Attention):
    """Queries attend to those of their own group, in training; `[B, G Q, W]`."""

    def __init__(self, width: int, heads: int, dropout: float, groups: int) -> None:
        super().__init__(width, heads, dropout)
        self.groups = groups

    @override
    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self.training:
            return super().forward(query, key, value, mask)
        shape = query.shape
        query, key, value = (x.reshape(-1, x.shape[1] // self.groups, x.shape[2]) for x in (query, key, value))
        return super().forward(query, key, value, mask).reshape(shape)


class LWDETRDecoderLayer(DeformableDecoderLayer):
    def __init__(self, config: LWDETRTransformerConfig, levels: int, groups: int) -> None:
        super().__init__(config, levels)
        self.self_attention = GroupedAttention(config.width, config.heads, config.dropout, groups)
        points = config.points_of(levels)
        self.cross_attention = DeformableAttention(config.width, config.cross_heads, points, config.sampling)


class LWDETRHead(SetHead[LWDETROutputs]):
    """proposers  one for each group
    queries     `[G, Q, W]`: what the queries of each group start with
    references  `[G, Q, 4]`: how their boxes differ from those of their cells
    """

    config: LWDETRHeadConfig

    def __init__(self, config: LWDETRHeadConfig, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__(config, num_classes, QualityClasses(num_classes, config.focal, config.iou_aware))
        transformer, width = config.transformer, config.transformer.width
        self.decoder = nn.ModuleList(
            LWDETRDecoderLayer(transformer, len(in_channels), config.groups) for _ in range(transformer.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.query_pos = MLP(2 * width, width, width)
        self.classifier = classifier_with_prior(width, num_classes, config.class_prior)
        self.regressor = zero_output(MLP(width, width, width, 4))
        self.queries = nn.Parameter(torch.randn(config.groups, config.num_queries, width))
        self.references = nn.Parameter(torch.zeros(config.groups, config.num_queries, 4))
        self.proposers = nn.ModuleList()
        for _ in range(config.groups):  # all of them start with the decoder's predictions, as published
            proposer = ScalingProposer(width, num_classes, config.class_prior, config.proposal_side)
            proposer.classifier.load_state_dict(self.classifier.state_dict())
            proposer.regressor.load_state_dict(self.regressor.state_dict())
            nn.init.xavier_uniform_(proposer.content.get_parameter("0.weight"))
            self.proposers.append(proposer)
        for layer in self.query_pos:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> LWDETROutputs:
        levels, sides = Levels.of(features, sizes, canvas), picture_sides(sizes)
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1)
        proposals, queries, boxes = self._propose(memory, levels, sides)
        logits, boxes = self._decode(queries, boxes, memory, levels)
        return LWDETROutputs(logits, boxes, sides, proposals)

    def _propose(self, memory: Tensor, levels: Levels, sides: Tensor) -> tuple[DETROutputs, Tensor, Tensor]:
        """The proposals, and content `[B, G Q, W]` and boxes `[B, G Q, 4]` of the queries."""
        groups = self.config.groups if self.training else 1
        proposers = cast("Sequence[CellProposer]", self.proposers)[:groups]
        best = [proposer.likeliest(memory, levels, self.config.num_queries) for proposer in proposers]
        logits = torch.stack([proposals.logits for proposals in best])
        anchors = torch.stack([proposals.anchors for proposals in best])
        count = anchors.shape[2]
        boxes = scaled(anchors.detach(), self.references[:groups, None, :count].to(anchors.dtype))
        queries = self.queries[:groups, :count].flatten(0, 1).expand(memory.shape[0], -1, -1).to(memory.dtype)
        return DETROutputs(logits, anchors, sides), queries, boxes.transpose(0, 1).flatten(1, 2)

    def _decode(self, hidden: Tensor, boxes: Tensor, memory: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
        """Logits `[L, B, G Q, K]` and boxes `[L, B, G Q, 4]`. All layers attend around the same boxes, and predict how
        an object's box differs from them."""
        embedding = box_pos_embed(boxes, levels, 2 * hidden.shape[2], self.config.temperature)
        query_pos = self.query_pos(embedding.to(hidden.dtype))
        layers = []
        for layer in self.decoder:
            hidden = layer(hidden, query_pos, boxes, memory, levels)
            layers.append(self.norm(hidden))
        states = torch.stack(layers)
        return self.classifier(states), scaled(boxes, at_least_float32(self.regressor(states)))

    @override
    def groups(self, outputs: LWDETROutputs) -> list[PredictionGroup]:
        proposals = outputs.proposals
        groups = len(proposals.logits)
        logits, boxes = (
            part.reshape(*part.shape[:2], groups, -1, part.shape[3]).transpose(1, 2).flatten(0, 1)
            for part in (outputs.logits, outputs.boxes)
        )
        return [
            QueryGroups("detr", logits, boxes, groups=groups),
            QueryGroups("proposal", proposals.logits, proposals.boxes, groups=groups),
        ]

    @override
    def match(self, groups: Sequence[PredictionGroup], objects: SetTargets) -> list[Matching]:
        """Losses are divided by the number of objects times that of the groups."""
        matchings = []
        for group in groups:
            assert isinstance(group, QueryGroups)
            count = objects.boxes.new_tensor(float(group.groups * len(objects.boxes)))
            count = mean_over_processes(count).clamp(min=1)
            pairs = self._assign(group, objects)
            matchings.append(Matching(pairs, pairs, count, count))
        return matchings

    @override
    def group_losses(
        self, group: PredictionGroup, objects: SetTargets, matching: Matching, neutral: Tensor
    ) -> dict[str, Tensor]:
        assert isinstance(group, QueryGroups)
        losses = super().group_losses(group, objects, matching, neutral)
        return {name: loss.reshape(-1, group.groups).sum(dim=1) for name, loss in losses.items()}

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        names = ["classifier", *(f"proposers.{number}.classifier" for number in range(self.config.groups))]
        return {name: rows(range(num_classes)) for name in names}

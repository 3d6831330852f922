"""What DINO (arXiv 2203.03605), RT-DETR (arXiv 2304.08069) and D-FINE (arXiv 2410.13842) share: queries that start at
the likeliest cells of several levels, and in training denoising queries before them.

Legend: B images, S cells of all levels together, Q queries, D denoising queries of an image, L decoder layers that
predict, K classes, W width. Anchors are cxcywh in parts of the picture's sides, before the sigmoid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.deformable import NEAREST_ZERO, DeformableTransformerConfig, Levels
from detkit.nn.denoising import DenoisingConfig, NoisedQueries, noised_queries
from detkit.nn.heads.class_rows import UNUSED, rows
from detkit.nn.heads.proposing import CellProposer
from detkit.nn.heads.set_head import (
    ClassPrediction,
    DETROutputs,
    PredictionGroup,
    SetHead,
    SetHeadConfig,
    picture_sides,
)
from detkit.nn.losses import FocalLossConfig
from detkit.nn.outputs import register_outputs
from detkit.structures import Size, Target

DETROutputsT = TypeVar("DETROutputsT", bound=DETROutputs)


class DenoisedSetHeadConfig(SetHeadConfig):
    """Defaults: those that DINO, RT-DETR and D-FINE share."""

    transformer: DeformableTransformerConfig = DeformableTransformerConfig()
    num_queries: int = Field(300, ge=1)  # predictions of an image; no more than there are cells
    class_cost: float = Field(2.0, ge=0)
    focal: FocalLossConfig = FocalLossConfig()  # of the cost of a class in the matching
    class_prior: float = Field(0.01, gt=0, lt=1)  # probability of a class before training
    proposal_side: float = Field(0.05, gt=0, lt=1)  # of the finest level's starting boxes, in parts of the picture's
    denoising: DenoisingConfig | None = DenoisingConfig()  # null: none


@register_outputs
@dataclass(frozen=True, eq=False)
class DenoisedOutputs:
    """
    decoder    predictions of the queries; `[L, B, Q, ...]`
    proposals  those of the cells that the queries start at; `[1, B, Q, ...]`
    denoising  those of the denoising queries, `[L, B, D, ...]`; None outside training
    noised     the denoising queries
    """

    decoder: DETROutputs
    proposals: DETROutputs
    denoising: DETROutputs | None
    noised: NoisedQueries | None

    @property
    def logits(self) -> Tensor:
        return self.decoder.logits

    @property
    def boxes(self) -> Tensor:
        return self.decoder.boxes

    @property
    def sides(self) -> Tensor:
        return self.decoder.sides


@dataclass(frozen=True, eq=False)
class Queries:
    """
    content  `[B, D + Q, W]`; denoising queries first
    anchors  at least float32 `[B, D + Q, 4]`
    mask     bool `[D + Q, D + Q]`, True where a query may attend to another; None: everywhere
    """

    content: Tensor
    anchors: Tensor
    mask: Tensor | None


class DenoisedSetHead(SetHead[DenoisedOutputs]):
    """A subclass adds `encode` and `decode`, and `content` where queries do not start with that of their cells."""

    config: DenoisedSetHeadConfig

    def __init__(self, config: DenoisedSetHeadConfig, num_classes: int, classes: ClassPrediction) -> None:
        super().__init__(config, num_classes, classes)
        width = config.transformer.width
        act = config.transformer.act
        self.proposer = CellProposer(width, num_classes, config.class_prior, config.proposal_side, act)
        if config.denoising:
            self.label_embed = nn.Embedding(num_classes + 1, width, padding_idx=num_classes)

    @abstractmethod
    def encode(self, features: list[Tensor], levels: Levels) -> Tensor:
        """Levels `[B, C_l, H_l, W_l]`, finest first -> memory `[B, S, W]`."""

    @abstractmethod
    def decode(self, queries: Queries, memory: Tensor, levels: Levels, sides: Tensor) -> DETROutputs:
        """The predictions of all queries, `[L, B, D + Q, ...]`."""

    def content(self, cells: Tensor) -> Tensor:
        """What queries start with, `[B, Q, W]`, given the content of the chosen cells `[B, Q, W]`."""
        return cells.detach()

    @override
    def forward(
        self, features: list[Tensor], sizes: Tensor, canvas: Size, targets: Sequence[Target] | None = None
    ) -> DenoisedOutputs:
        """targets: in training, of which the denoising queries are made; None: there are none."""
        levels, sides = Levels.of(features, sizes, canvas), picture_sides(sizes)
        memory = self.encode(features, levels)
        best = self.proposer.likeliest(memory, levels, self.config.num_queries)
        queries, noised, count = Queries(self.content(best.content), best.anchors.detach(), None), None, 0
        if targets is not None and self.config.denoising:
            noised = noised_queries(self.config.denoising, SetTargets.of(targets, sides), self.num_classes)
            queries, count = self._with_noised(queries, noised), noised.labels.shape[1]
        decoded = self.decode(queries, memory, levels, sides)
        return DenoisedOutputs(
            _cut(decoded, count, None),
            DETROutputs(best.logits[None], best.anchors.sigmoid()[None], sides),
            _cut(decoded, 0, count) if noised else None,
            noised,
        )

    def _with_noised(self, queries: Queries, noised: NoisedQueries) -> Queries:
        empty = noised.labels[..., None] == self.num_classes
        content = self.label_embed(noised.labels).masked_fill(empty, 0.0)
        anchors = noised.boxes.to(queries.anchors.dtype).logit(NEAREST_ZERO)
        return Queries(
            torch.cat([content.to(queries.content.dtype), queries.content], dim=1),
            torch.cat([anchors, queries.anchors], dim=1),
            noised.mask_with(queries.content.shape[1]),
        )

    @override
    def groups(self, outputs: DenoisedOutputs) -> list[PredictionGroup]:
        proposals = outputs.proposals
        groups = [*super().groups(outputs), PredictionGroup("proposal", proposals.logits, proposals.boxes)]
        if outputs.denoising is not None and outputs.noised is not None:
            logits, boxes, noised = outputs.denoising.logits, outputs.denoising.boxes, outputs.noised
            groups.append(PredictionGroup("denoising", logits, boxes, noised.groups, pairs=noised.pairs(len(logits))))
        return groups

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        embed = {"label_embed": rows(range(num_classes), UNUSED)} if self.config.denoising else {}
        return {"proposer.classifier": rows(range(num_classes)), **embed}


def _cut(outputs: DETROutputsT, start: int, stop: int | None) -> DETROutputsT:
    """The predictions of some queries."""
    parts = {field.name: getattr(outputs, field.name) for field in fields(outputs) if field.name != "sides"}
    return replace(outputs, **{name: part[:, :, start:stop] for name, part in parts.items()})

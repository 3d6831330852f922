"""The head of Deformable DETR (Zhu et al., arXiv 2010.04159): plain, with boxes that every layer refines, and with
queries that the encoder proposes (section 4.2).

Legend: B images, S cells of all levels together, Q queries, D width, L decoder layers, K classes.
Boxes and positions are in parts of the picture's sides, padding excluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.deformable import (
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableTransformerConfig,
    Levels,
    moved,
)
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.proposing import CellProposer, best_of
from detkit.nn.heads.set_head import (
    DETROutputs,
    PredictionGroup,
    ProposingOutputs,
    SetHead,
    SetHeadConfig,
    SigmoidClasses,
    classifier_with_prior,
    picture_sides,
)
from detkit.nn.losses import FocalLossConfig
from detkit.nn.transformer import MLP, sine_embedding, zero_output
from detkit.ops.boxes import at_least_float32
from detkit.structures import Size


class DeformableDETRHeadConfig(SetHeadConfig):
    """Defaults: Deformable DETR without its two variants."""

    name: Literal["deformable_detr"] = "deformable_detr"
    transformer: DeformableTransformerConfig = DeformableTransformerConfig()
    num_queries: int = Field(300, ge=1)
    class_cost: float = Field(2.0, ge=0)
    class_weight: float = Field(2.0, ge=0)
    focal: FocalLossConfig = FocalLossConfig()
    class_prior: float = Field(0.01, gt=0, lt=1)  # probability of a class before training
    refine: bool = False  # each decoder layer has its own predictions, which start from the boxes of the layer before
    two_stage: bool = False  # the best boxes that the encoder's cells predict are the queries; needs `refine`
    proposal_side: float = Field(0.05, gt=0, lt=1)  # of the finest level's starting boxes, in parts of the picture's

    @model_validator(mode="after")
    def _two_stages_refine(self) -> DeformableDETRHeadConfig:
        if self.two_stage and not self.refine:
            raise ValueError("two_stage: needs refine: true, found false; the proposals are boxes that layers refine")
        return self


class DeformableDETRHead(SetHead[ProposingOutputs]):
    """classifiers, regressors: one for each decoder layer with `refine`; else one for all of them."""

    config: DeformableDETRHeadConfig

    def __init__(self, config: DeformableDETRHeadConfig, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__(config, num_classes, SigmoidClasses(num_classes, config.focal))
        transformer, levels = config.transformer, len(in_channels)
        width, layers = transformer.width, transformer.decoder_layers
        self.encoder = DeformableEncoder(transformer, levels, config.temperature)
        self.decoder = nn.ModuleList(DeformableDecoderLayer(transformer, levels) for _ in range(layers))
        heads = layers if config.refine else 1
        self.classifiers = nn.ModuleList(
            classifier_with_prior(width, num_classes, config.class_prior) for _ in range(heads)
        )
        self.regressors = nn.ModuleList(zero_output(MLP(width, width, width, 4)) for _ in range(heads))
        if config.two_stage:
            self.proposer = CellProposer(width, num_classes, config.class_prior, config.proposal_side)
            self.query = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width))
        else:
            self.queries = nn.Parameter(torch.randn(config.num_queries, 2 * width))  # position, then content
            self.reference = nn.Linear(width, 2)
            nn.init.xavier_uniform_(self.reference.weight)
            nn.init.zeros_(self.reference.bias)
            with torch.no_grad():  # without a box before it, small ones come first
                self.regressors[0].get_parameter("4.bias")[2:] = -2.0

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> ProposingOutputs:
        levels = Levels.of(features, sizes, canvas)
        memory = self.encoder(features, levels)
        sides = picture_sides(sizes)
        proposals = None
        if self.config.two_stage:
            proposals, positions, query_pos, hidden = self._propose(memory, levels, sides)
        else:
            query_pos, hidden = self.queries.expand(len(memory), -1, -1).chunk(2, dim=-1)
            positions = self.reference(query_pos).sigmoid()
        logits, boxes = [], []
        for number, layer in enumerate(self.decoder):
            hidden = layer(hidden, query_pos, positions, memory, levels)
            own = number if self.config.refine else 0
            logits.append(self.classifiers[own](hidden))
            boxes.append(moved(at_least_float32(positions), at_least_float32(self.regressors[own](hidden))))
            if self.config.refine:
                positions = boxes[-1].detach()
        return ProposingOutputs(torch.stack(logits), torch.stack(boxes), sides, proposals)

    def _propose(self, memory: Tensor, levels: Levels, sides: Tensor) -> tuple[DETROutputs, Tensor, Tensor, Tensor]:
        """The predictions of all cells, and of the Q best boxes, position embeddings and content of queries."""
        cells = self.proposer.locate(self.proposer(memory, levels))
        best = best_of(cells, cells.logits[..., 0], self.config.num_queries)  # class 0 stands for any object
        positions = best.anchors.detach().sigmoid()
        width = self.config.transformer.width
        embedding = sine_embedding(positions, 2 * width, self.config.temperature).to(memory.dtype)
        query_pos, hidden = self.query(embedding).chunk(2, dim=-1)
        return DETROutputs(cells.logits[None], cells.anchors.sigmoid()[None], sides), positions, query_pos, hidden

    @override
    def groups(self, outputs: ProposingOutputs) -> list[PredictionGroup]:
        groups = super().groups(outputs)
        if outputs.proposals is not None:
            logits, boxes = outputs.proposals.logits, outputs.proposals.boxes
            groups.append(PredictionGroup("proposal", logits, boxes, any_class=True))
        return groups

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        layers = [f"classifiers.{number}" for number in range(len(self.classifiers))]
        layers += ["proposer.classifier"] * self.config.two_stage
        return {layer: rows(range(num_classes)) for layer in layers}

"""DAB-DETR's head: queries are boxes that every decoder layer moves (Liu et al., arXiv 2201.12329).

Options: in training, queries that are objects with noise (DN-DETR, Li et al., arXiv 2203.01305); queries that the cells
of the encoded map propose (Deformable DETR, Zhu et al., arXiv 2010.04159, section 4.2).

Legend: B images, S = h x w cells of the feature map, Q queries, D width, L decoder layers, K classes.
Boxes are cxcywh in parts of the picture's sides. Anchors are boxes before the sigmoid, `[..., 4]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config
from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.blocks import Activation
from detkit.nn.conditional import ConditionalAttention, conditional_layers, draw_weights
from detkit.nn.deformable import Levels
from detkit.nn.denoising import DenoisingConfig, NoisedQueries, noised_queries
from detkit.nn.heads.class_rows import NO_CLASS, rows
from detkit.nn.heads.denoised import Queries
from detkit.nn.heads.proposing import CellProposer, best_of
from detkit.nn.heads.set_head import (
    DETROutputs,
    OneLevelSetHead,
    PredictionGroup,
    ProposingOutputs,
    SetHeadConfig,
    SetSelectionConfig,
    SigmoidClasses,
    classifier_with_prior,
    picture_sides,
)
from detkit.nn.losses import FocalLossConfig
from detkit.nn.outputs import register_outputs
from detkit.nn.transformer import MLP, Encoder, TransformerConfig, sine_embedding, zero_output
from detkit.ops.boxes import at_least_float32
from detkit.structures import Size, Target

EPS = 1e-3  # coordinates of anchors are clamped to [EPS, 1 - EPS], as published, and so
FARTHEST = math.log(1 / EPS - 1)  # anchors to [-FARTHEST, FARTHEST]
NO_LOSS = -30.0  # a logit whose focal loss is 0 if no object is of the class


class ProposalConfig(Config):
    """Every cell of the encoded map predicts an object; the boxes of the likeliest cells become the queries.

    The loss of these predictions also gives the backbone a gradient from every cell.
    """

    copies: int = Field(1, ge=1)  # cells that are trained to find each object (more than one: H-DETR, arXiv 2207.13080)
    side: float = Field(0.1, gt=0, lt=1)  # part of the picture's sides: of the square boxes that cells start from


class DNDenoisingConfig(DenoisingConfig):
    """Defaults: DN-DETR (arXiv 2203.01305)."""

    groups: int | None = Field(5, ge=1)
    label_noise: float = Field(0.2, ge=0, le=1)
    box_noise: float = Field(0.4, ge=0)
    moved: Literal["corners", "center"] = "center"
    negatives: bool = False
    empty: float = Field(0.5, ge=0, le=1)


class DABSelectionConfig(SetSelectionConfig):
    max_detections: int = Field(300, ge=1)


class DABTransformerConfig(TransformerConfig):
    dropout: float = Field(0.0, ge=0, lt=1)
    act: Activation = "prelu"


class DABDETRHeadConfig(SetHeadConfig):
    """Defaults: DAB-DETR R50, its code where the paper says nothing."""

    name: Literal["dab_detr"] = "dab_detr"
    transformer: DABTransformerConfig = DABTransformerConfig()
    num_queries: int = Field(300, ge=1)  # predictions of an image; with proposals: no more than there are cells
    temperature: float = Field(20.0, gt=1)  # of the cells (section "Temperature tuning")
    query_temperature: float = Field(10000.0, gt=1)  # longest wavelength of the position embeddings of queries
    class_cost: float = Field(2.0, ge=0)
    focal: FocalLossConfig = FocalLossConfig()
    class_prior: float = Field(0.01, gt=0, lt=1)  # probability of a class before training (RetinaNet, section 4.1)
    proposals: ProposalConfig | None = None  # null: learned anchors, the same for every image
    denoising: DNDenoisingConfig | None = None  # null: none, DAB-DETR; {}: DN-DETR
    selection: DABSelectionConfig = DABSelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class DABOutputs(ProposingOutputs):
    """
    denoising  predictions of the denoising queries, `[L, B, N, ...]`; None outside training
    noised     the denoising queries
    """

    denoising: DETROutputs | None = None
    noised: NoisedQueries | None = None


class DABDETRHead(OneLevelSetHead[DABOutputs]):
    """Each query is an anchor that every decoder layer moves, and attends first to what lies near it."""

    config: DABDETRHeadConfig

    def __init__(self, config: DABDETRHeadConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes, SigmoidClasses(num_classes, config.focal), DABEncoder)
        width = config.transformer.width
        self.decoder = DABDecoder(config.transformer, config.query_temperature)
        if config.proposals:
            self.proposer = CellProposer(width, num_classes, config.class_prior, config.proposals.side)
            self.decoder.attend_near()
        else:
            self.anchors = nn.Parameter(torch.randn(config.num_queries, 4))
        if config.denoising:
            self.label_embed = nn.Embedding(num_classes + 1, width - 1)  # the last: any object
        self.classifier = classifier_with_prior(width, num_classes, config.class_prior)

    @override
    def forward(
        self, features: list[Tensor], sizes: Tensor, canvas: Size, targets: Sequence[Target] | None = None
    ) -> DABOutputs:
        """targets: in training, whose objects become denoising queries; None: there are no such queries."""
        memory, pos_embed, _, mask = self.encode(features[-1], sizes, canvas)
        sides = picture_sides(sizes)
        queries, proposals = self._start(memory, Levels.of(features[-1:], sizes, canvas), sides)
        noised, count = None, 0
        if targets is not None and self.config.denoising:
            noised = noised_queries(self.config.denoising, SetTargets.of(targets, sides), self.num_classes)
            queries, count = self._with_noised(queries, noised), noised.labels.shape[1]
        hidden_states, boxes = self.decoder(queries, memory, pos_embed, mask)
        logits = self.classifier(hidden_states)
        denoising = DETROutputs(logits[:, :, :count], boxes[:, :, :count], sides) if noised else None
        return DABOutputs(logits[:, :, count:], boxes[:, :, count:], sides, proposals, denoising, noised)

    def _start(self, memory: Tensor, levels: Levels, sides: Tensor) -> tuple[Queries, DETROutputs | None]:
        """The queries, and the predictions of the cells if they have proposed them."""
        if self.config.proposals:
            cells = self.proposer.locate(self.proposer(memory, levels))
            scores = cells.logits.amax(dim=-1).masked_fill(levels.padding, -math.inf)
            best = best_of(cells, scores, self.config.num_queries)
            proposals = DETROutputs(cells.logits[None], cells.anchors.sigmoid()[None], sides)
            return Queries(best.content, best.anchors.detach(), None), proposals
        anchors = self.anchors.expand(memory.shape[0], -1, -1)
        if self.config.denoising:
            content = self._content(torch.full(anchors.shape[:2], self.num_classes, device=memory.device), 0.0)
        else:
            content = torch.zeros(*anchors.shape[:2], memory.shape[2], device=memory.device)
        return Queries(content.to(memory.dtype), anchors, None), None

    def _with_noised(self, queries: Queries, noised: NoisedQueries) -> Queries:
        empty = noised.labels[..., None] == self.num_classes
        content = self._content(noised.labels, 1.0).masked_fill(empty, 0.0).to(queries.content.dtype)
        return Queries(
            torch.cat([content, queries.content], dim=1),
            torch.cat([noised.boxes.logit(EPS), queries.anchors], dim=1),
            noised.mask_with(queries.content.shape[1]),
        )

    def _content(self, labels: Tensor, denoising: float) -> Tensor:
        """`[B, Q, D]`: what queries of these labels start with; the last number is 1 for denoising queries, else 0."""
        return F.pad(self.label_embed(labels), (0, 1), value=denoising)

    @override
    def groups(self, outputs: DABOutputs) -> list[PredictionGroup]:
        groups = super().groups(outputs)
        if outputs.proposals and self.config.proposals:
            logits, boxes = outputs.proposals.logits, outputs.proposals.boxes
            groups.append(PredictionGroup("proposal", logits, boxes, self.config.proposals.copies))
        if outputs.denoising and outputs.noised:
            boxes, noised = outputs.denoising.boxes, outputs.noised
            empty = noised.labels[..., None] == self.num_classes
            logits = outputs.denoising.logits.masked_fill(empty, NO_LOSS)
            groups.append(PredictionGroup("denoising", logits, boxes, noised.groups, pairs=noised.pairs(len(logits))))
        return groups

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        proposer = {"proposer.classifier": rows(range(num_classes))} if self.config.proposals else {}
        embed = {"label_embed": rows(range(num_classes), NO_CLASS)} if self.config.denoising else {}
        return {"classifier": rows(range(num_classes)), **proposer, **embed}


class DABEncoder(Encoder):
    """Before every layer, the position embedding is multiplied by factors that an MLP reads from the content."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.scale = MLP(config.width, config.width, config.width)
        draw_weights(self.scale)

    @override
    def forward(self, hidden: Tensor, pos_embed: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, pos_embed * self.scale(hidden), mask)
        return hidden


class DABDecoder(nn.Module):
    """Every layer moves the anchors; all layers share the norm and the MLPs.

    position   MLP: sine embedding of a box -> position embedding of its query
    scale      MLP: hidden state -> factors of the sines of the centre, from the second layer on
    sides      MLP: hidden state -> reference width and height, by which attention is widened
    regressor  MLP: hidden state -> the move of an anchor
    """

    def __init__(self, config: TransformerConfig, temperature: float) -> None:
        super().__init__()
        width = config.width
        self.width, self.temperature = width, temperature
        self.layers = conditional_layers(config)
        self.norm = nn.LayerNorm(width)
        self.position = MLP(2 * width, width, width)
        self.scale = MLP(width, width, width)
        self.sides = MLP(width, width, 2)
        self.regressor = MLP(width, width, width, 4)
        draw_weights(self)
        zero_output(self.regressor)

    def attend_near(self) -> None:
        """Makes queries attend to cells near their centres before training: the sines of both are compared as they
        are. Not published; anchors that lie on objects from the start gain by it."""
        for module in self.modules():
            if isinstance(module, ConditionalAttention):
                module.k_pos.load_state_dict(module.q_sine.state_dict())
        nn.init.ones_(zero_output(self.scale).get_parameter("2.bias"))

    def forward(
        self, queries: Queries, memory: Tensor, pos_embed: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """
        memory  `[B, S, D]` with its position embedding `pos_embed`, `[B, S, D]`
        mask    bool, broadcastable to `[B, heads, Q, S]`: True at cells that may be attended to; None: all
        Returns the normalised hidden states `[L, B, Q, D]` and the boxes `[L, B, Q, 4]` after every layer.
        """
        hidden_states, boxes = [], []
        # What a layer predicts also trains the move by the layer before; what it attends to does not, as published.
        moved = anchors = at_least_float32(queries.anchors).clamp(-FARTHEST, FARTHEST)
        hidden = queries.content
        for number, layer in enumerate(self.layers):
            box_embed, near = self.embed(anchors, hidden)
            if number:
                near = near * self.scale(hidden)
            hidden = layer(hidden, self.position(box_embed), near, memory, pos_embed, mask, queries.mask)
            hidden_states.append(self.norm(hidden))
            boxes.append((moved + self.regressor(hidden_states[-1])).sigmoid())
            moved = (anchors + self.regressor(hidden)).clamp(-FARTHEST, FARTHEST)
            anchors = moved.detach()
        return torch.stack(hidden_states), torch.stack(boxes)

    def embed(self, anchors: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The sine embedding of the anchors, `[B, Q, 2 D]`, and that of their centres `[B, Q, D]`, which makes a query
        attend to what is near, the more widely the larger its box is (section "Width & height-modulated Gaussian
        kernel")."""
        boxes = anchors.sigmoid()
        box_embed = sine_embedding(boxes[..., [1, 0, 2, 3]], 2 * self.width, self.temperature).to(hidden.dtype)
        stretch = (self.sides(hidden).sigmoid() / boxes[..., 2:]).flip(-1).to(hidden.dtype)
        return box_embed, box_embed[..., : self.width] * stretch.repeat_interleave(self.width // 2, dim=-1)

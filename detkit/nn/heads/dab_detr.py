"""A DETR that learns in fewer epochs: its queries are boxes that every decoder layer moves (DAB-DETR, Liu et al., arXiv
2201.12329), and the cells of the encoded map may propose them (Deformable DETR, Zhu et al., arXiv 2010.04159, 4.2).

Legend: B images, S = h x w cells of the feature map, Q queries, D width, L decoder layers, K classes.
Boxes are cxcywh in parts of the picture's sides. Anchors are boxes before the sigmoid, `[..., 4]`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.set_head import (
    DETROutputs,
    OneLevelSetHead,
    PredictionGroup,
    ProposingOutputs,
    SetHeadConfig,
    SigmoidClasses,
    classifier_with_prior,
    picture_sides,
)
from detkit.nn.losses import FocalLossConfig
from detkit.nn.transformer import (
    MLP,
    CrossAttention,
    DecoderLayer,
    TransformerConfig,
    count_cells,
    sine_embedding,
)
from detkit.structures import Size

EPS = 1e-3  # box coordinates are clamped to [EPS, 1 - EPS] before they become anchors, which would be infinite
PADDING_LOGIT = -30.0  # of every class at padding: below all others, and finite should an object be matched with it
MIN_SIDE = 1e-2  # part of the picture's sides: smaller anchors count as this large where attention is divided by it


class ProposalConfig(Config):
    """Every cell of the encoded map predicts an object; the boxes of the likeliest cells become the queries.

    The loss of these predictions also gives the backbone a gradient from every cell.
    """

    copies: int = Field(1, ge=1)  # cells that are trained to find each object (more than one: H-DETR, arXiv 2207.13080)
    side: float = Field(0.1, gt=0, lt=1)  # part of the picture's sides: of the square boxes that cells start from


class DABDETRHeadConfig(SetHeadConfig):
    name: Literal["dab_detr"] = "dab_detr"
    num_queries: int = Field(300, ge=1)  # predictions of an image; with proposals: no more than there are cells
    temperature: float = Field(20.0, gt=1)  # DAB-DETR, section "Temperature tuning"
    class_cost: float = Field(2.0, ge=0)
    focal: FocalLossConfig = FocalLossConfig()
    class_prior: float = Field(0.01, gt=0, lt=1)  # probability of a class before training (RetinaNet, section 4.1)
    proposals: ProposalConfig | None = None  # null: learned anchors, the same for every image


class DABDETRHead(OneLevelSetHead[ProposingOutputs]):
    """Each query is an anchor that every decoder layer moves, and attends first to what lies near it."""

    def __init__(self, config: DABDETRHeadConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes, SigmoidClasses(num_classes, config.focal))
        width = config.transformer.width
        self.proposer = Proposer(config.proposals, width, num_classes, config.class_prior) if config.proposals else None
        if not self.proposer:
            self.anchors = nn.Parameter(torch.rand(config.num_queries, 4).logit(EPS))
            self.content = nn.Parameter(torch.randn(1, width))
        self.decoder = DABDecoder(config.transformer, config.temperature)
        self.classifier = classifier_with_prior(width, num_classes, config.class_prior)

    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> ProposingOutputs:
        memory, pos_embed, padding, mask = self.encode(features[-1], sizes, canvas)
        sides = picture_sides(sizes)
        proposals = None
        if self.proposer:
            proposals, anchors, content = self.proposer(memory, padding, sides, self.config.num_queries)
        else:
            anchors = self.anchors.expand(memory.shape[0], -1, -1)
            content = self.content.expand(memory.shape[0], self.config.num_queries, -1)
        hidden_states, boxes = self.decoder(content, anchors, memory, pos_embed, mask)
        return ProposingOutputs(self.classifier(hidden_states), boxes, sides, proposals)

    def groups(self, outputs: ProposingOutputs) -> list[PredictionGroup]:
        groups = super().groups(outputs)
        if outputs.proposals and self.proposer:
            logits, boxes = outputs.proposals.logits, outputs.proposals.boxes
            groups.append(PredictionGroup("proposal", logits, boxes, self.proposer.config.copies))
        return groups

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        layers = ["classifier", "proposer.classifier"] if self.proposer else ["classifier"]
        return {layer: rows(range(num_classes)) for layer in layers}


class Proposer(nn.Module):
    """Predicts classes and a box from every cell; the box starts as a small one at the centre of the cell."""

    def __init__(self, config: ProposalConfig, width: int, num_classes: int, class_prior: float) -> None:
        super().__init__()
        self.config = config
        self.content = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.classifier = classifier_with_prior(width, num_classes, class_prior)
        self.regressor = starting_at(0.0, MLP(width, width, width, 4))

    def forward(
        self, memory: Tensor, padding: Tensor, sides: Tensor, num_queries: int
    ) -> tuple[DETROutputs, Tensor, Tensor]:
        """
        memory   `[B, S, D]`
        padding  bool `[B, h, w]`
        sides    `[B, 4]`: (w, h, w, h) of the pictures in px
        Returns the predictions of all cells `[1, B, S, ...]`, and of the Q likeliest the anchors `[B, Q, 4]` and the
        content `[B, Q, D]`.
        """
        content = self.content(memory)
        cells, last = count_cells(padding)
        centers = ((cells - 0.5) / last.clamp(min=1)).flip(-1)
        boxes = torch.cat([centers, torch.full_like(centers, self.config.side)], dim=-1).flatten(1, 2)
        anchors = boxes.logit(EPS) + self.regressor(content)
        logits = self.classifier(content).masked_fill(padding.flatten(1)[..., None], PADDING_LOGIT)
        best = logits.detach().amax(dim=-1).topk(min(num_queries, logits.shape[1]), dim=1).indices[..., None]
        best_anchors, best_content = (
            # `take_along_dim` would do without `expand`, but an export with it is of one batch size only.
            tensor.gather(1, best.expand(-1, -1, tensor.shape[2]))
            for tensor in (anchors.detach(), content)
        )
        return DETROutputs(logits[None], anchors.sigmoid()[None], sides), best_anchors, best_content


class DABDecoder(nn.Module):
    """Every layer moves the anchors; all layers share the norm and the MLPs.

    place      MLP: sine embedding of a box -> position embedding of its query
    scale      MLP: hidden state -> factors of the sine embedding of the centre
    sides      MLP: hidden state -> reference height and width, by which attention is widened
    regressor  MLP: hidden state -> the move of an anchor
    """

    def __init__(self, config: TransformerConfig, temperature: float) -> None:
        super().__init__()
        width = config.width
        self.width, self.temperature = width, temperature
        self.layers = nn.ModuleList(DecoderLayer(config, ConditionalAttention) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.place = MLP(2 * width, width, width)
        self.scale = starting_at(1.0, MLP(width, width, width))
        self.sides = MLP(width, width, 2)
        self.regressor = starting_at(0.0, MLP(width, width, width, 4))

    def forward(
        self, hidden: Tensor, anchors: Tensor, memory: Tensor, pos_embed: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """
        hidden   `[B, Q, D]`: the content of the queries
        anchors  `[B, Q, 4]`
        memory   `[B, S, D]` with its position embedding `pos_embed`, `[B, S, D]`
        Returns the normalised hidden states `[L, B, Q, D]` and the boxes `[L, B, Q, 4]` after every layer.
        """
        hidden_states, boxes = [], []
        for layer in self.layers:
            yxhw = anchors.sigmoid()[..., [1, 0, 3, 2]]
            box_embed = sine_embedding(yxhw, 2 * self.width, self.temperature).to(hidden.dtype)
            # A query attends to what is near its centre, the more widely the larger its box is
            # (section "Width & height-modulated Gaussian kernel").
            stretch = self.sides(hidden).sigmoid() / yxhw[..., 2:].clamp(min=MIN_SIDE)
            query_sine_embed = box_embed[..., : self.width] * self.scale(hidden)
            query_sine_embed = query_sine_embed * stretch.repeat_interleave(self.width // 2, dim=-1)
            hidden = layer(hidden, self.place(box_embed), query_sine_embed, memory, pos_embed, mask)
            hidden_states.append(self.norm(hidden))
            anchors = anchors + self.regressor(hidden_states[-1])
            boxes.append(anchors.sigmoid())
            anchors = anchors.detach()
        return torch.stack(hidden_states), torch.stack(boxes)


class ConditionalAttention(CrossAttention):
    """Content and position are compared apart: side by side in every head (Conditional DETR, arXiv 2108.06152)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, dropout)
        self.q_place, self.k_place = nn.Linear(width, width), nn.Linear(width, width)
        # They are the same at first, so that queries attend to near cells from the start.
        self.k_place.load_state_dict(self.q_place.state_dict())

    def forward(  # type: ignore[override]
        self, hidden: Tensor, query_sine_embed: Tensor, memory: Tensor, pos_embed: Tensor, mask: Tensor | None
    ) -> Tensor:
        q = torch.cat([self.split(self.q(hidden)), self.split(self.q_place(query_sine_embed))], dim=-1)
        k = torch.cat([self.split(self.k(memory)), self.split(self.k_place(pos_embed))], dim=-1)
        return self.attend(q, k, self.split(self.v(memory)), mask)


def starting_at(value: float, mlp: MLP) -> MLP:
    """Makes every output of `mlp` nearly `value` before training."""
    last = mlp[-1]
    assert isinstance(last, nn.Linear)
    nn.init.xavier_uniform_(last.weight, gain=1e-2)
    nn.init.constant_(last.bias, value)
    return mlp

"""A DETR that learns in fewer epochs: queries are anchors that every decoder layer moves (DAB-DETR, Liu et al.,
arXiv 2201.12329), and the encoder may propose them (Deformable DETR, Zhu et al., arXiv 2010.04159, section 4.2).

Legend: B images, S cells of the feature map, Q queries, D width, L decoder layers, K classes.
Boxes are cxcywh in parts of the image's sides; anchors are the logits of boxes.
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
from torchvision.ops import sigmoid_focal_loss

from detkit.config import Config
from detkit.nn.heads.detr import DETROutputs, Objects, SetHead, SetHeadConfig, image_sides
from detkit.nn.transformer import (
    MLP,
    Attention,
    FeedForward,
    TransformerConfig,
    map_places,
    padding_mask,
    sine_embedding,
)
from detkit.structures import Size

TEMPERATURE = 20.0  # of the sines (DAB-DETR, section 4.4)
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (RetinaNet, arXiv 1708.02002)
PRIOR = 0.01  # probability of a class before training
EPS = 1e-3  # anchors begin within [EPS, 1 - EPS]
NOTHING = -30.0  # logit of every class at padding: below all others, and harmless should a crowd need the cell
LEAST_SIDE = 1e-2  # of an anchor, where attention is stretched by its sides


class ProposalConfig(Config):
    """Every cell of the encoded map predicts an object, a dense loss for the trunk; the likeliest are the queries."""

    copies: int = Field(1, ge=1)  # cells that are to find an object (more than one: H-DETR, arXiv 2207.13080)
    side: float = Field(0.1, gt=0, lt=1)  # part of the image's sides that boxes of cells begin with


class DABDETRHeadConfig(SetHeadConfig):
    name: Literal["dab_detr"] = "dab_detr"
    num_queries: int = Field(300, ge=1)  # or as many as there are cells, where they are proposals
    class_cost: float = Field(2.0, ge=0)
    class_weight: float = Field(1.0, ge=0)
    proposals: ProposalConfig | None = None  # null: learned anchors, the same for every image


@dataclass(frozen=True, eq=False)
class DABDETROutputs(DETROutputs):
    """`logits` are `[L, B, Q, K]`, each class by itself.

    proposals  outputs of the cells, `[1, B, S, ...]`
    """

    proposals: DETROutputs | None


class DABDETRHead(SetHead):
    """Each query is an anchor that every decoder layer moves, and looks near it first."""

    temperature = TEMPERATURE

    def __init__(self, config: DABDETRHeadConfig, in_channels: int, class_names: Sequence[str]) -> None:
        super().__init__(config, in_channels, class_names)
        width, num_classes = config.transformer.width, len(class_names)
        self.class_weight = config.class_weight
        self.proposer = Proposer(config.proposals, width, num_classes) if config.proposals else None
        if not self.proposer:
            self.anchors = nn.Parameter(torch.rand(config.num_queries, 4).logit(EPS))
            self.content = nn.Parameter(torch.randn(1, width))
        self.decoder = DABDecoder(config.transformer)
        self.classifier = rare_classifier(width, num_classes)

    def forward(self, features: Tensor, sizes: Sequence[Size], canvas: Size) -> DABDETROutputs:
        memory, positions, mask = self.encode(features, sizes, canvas)
        sides = image_sides(sizes, memory.device)
        proposals = None
        if self.proposer:
            padding = padding_mask(sizes, canvas, (features.shape[2], features.shape[3]), features.device)
            proposals, anchors, content = self.proposer(memory, padding, sides, self.config.num_queries)
        else:
            anchors = self.anchors.expand(len(memory), -1, -1)
            content = self.content.expand(len(memory), self.config.num_queries, -1)
        said, boxes = self.decoder(content, anchors, memory, positions, mask)
        return DABDETROutputs(self.classifier(said), boxes, sides, proposals)

    def set_losses(self, outputs: DETROutputs, objects: Objects, norm: Tensor) -> dict[str, Tensor]:
        assert isinstance(outputs, DABDETROutputs)
        losses = super().set_losses(outputs, objects, norm)
        if outputs.proposals and self.proposer:
            copies = self.proposer.config.copies
            wanted = repeated(objects, copies)
            found = self.layer_losses(outputs.proposals, wanted, self.match(outputs.proposals, wanted), norm * copies)
            losses |= {f"proposal_{name}": loss.sum() for name, loss in found.items()}
        return losses

    def class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What the focal loss would change by making the class an object's (Deformable DETR, arXiv 2010.04159)."""
        logits = logits[:, :, labels]
        ours: Tensor = sigmoid_focal_loss(logits, torch.ones_like(logits), ALPHA, GAMMA)
        not_ours: Tensor = sigmoid_focal_loss(logits, torch.zeros_like(logits), ALPHA, GAMMA)
        return self.config.class_cost * (ours - not_ours)

    def class_loss(self, logits: Tensor, labels: Tensor, norm: Tensor) -> Tensor:
        wanted = F.one_hot(labels, len(self.class_names) + 1)[..., :-1].to(logits.dtype)
        loss: Tensor = sigmoid_focal_loss(logits, wanted, ALPHA, GAMMA)
        return self.class_weight * loss.sum(dim=(1, 2, 3)) / norm

    def class_scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class Proposer(nn.Module):
    """Reads classes and a box off every cell, the box as a change of a small one at the cell's centre."""

    def __init__(self, config: ProposalConfig, width: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.content = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.classifier = rare_classifier(width, num_classes)
        self.regressor = starting_at(0.0, MLP(width, width, width, 4))

    def forward(
        self, memory: Tensor, padding: Tensor, sides: Tensor, num_queries: int
    ) -> tuple[DETROutputs, Tensor, Tensor]:
        """Memory `[B, S, D]`, padding bool `[B, h, w]` -> what the cells say `[1, B, S, ...]`; of the Q likeliest the
        anchors `[B, Q, 4]` and the content `[B, Q, D]`."""
        content = self.content(memory)
        place, last = map_places(padding)
        centers = ((place - 0.5) / last.clamp(min=1)).flip(-1)
        cells = torch.cat([centers, torch.full_like(centers, self.config.side)], dim=-1).flatten(1, 2)
        anchors = cells.logit(EPS) + self.regressor(content)
        logits = self.classifier(content).masked_fill(padding.flatten(1)[..., None], NOTHING)
        best = logits.detach().amax(dim=-1).topk(min(num_queries, logits.shape[1]), dim=1).indices[..., None]
        proposals = DETROutputs(logits[None], anchors.sigmoid()[None], sides)
        return proposals, anchors.detach().take_along_dim(best, 1), content.take_along_dim(best, 1)


class DABDecoder(nn.Module):
    """Layer after layer the anchors move; all layers share the norm and the MLPs."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.width = width
        self.layers = nn.ModuleList(DABDecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.place = MLP(2 * width, width, width)
        self.scale = starting_at(1.0, MLP(width, width, width))
        self.sides = MLP(width, width, 2)
        self.regressor = starting_at(0.0, MLP(width, width, width, 4))

    def forward(
        self, x: Tensor, anchors: Tensor, memory: Tensor, positions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Content `[B, Q, D]`, anchors `[B, Q, 4]` -> what each layer says `[L, B, Q, D]`, its boxes `[L, B, Q, 4]`."""
        said, boxes = [], []
        for layer in self.layers:
            yxhw = anchors.sigmoid()[..., [1, 0, 3, 2]]
            waves = sine_embedding(yxhw, 2 * self.width, TEMPERATURE).to(x.dtype)
            # where a query looks: at its centre, in units of its sides (sections 4.2 to 4.4)
            stretch = self.sides(x).sigmoid() / yxhw[..., 2:].clamp(min=LEAST_SIDE)
            where = waves[..., : self.width] * self.scale(x) * stretch.repeat_interleave(self.width // 2, dim=-1)
            x = layer(x, self.place(waves), where, memory, positions, mask)
            said.append(self.norm(x))
            anchors = anchors + self.regressor(said[-1])
            boxes.append(anchors.sigmoid())
            anchors = anchors.detach()
        return torch.stack(said), torch.stack(boxes)


class DABDecoderLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config.width, config.heads, config.dropout)
        self.self_norm = nn.LayerNorm(config.width)
        self.cross_attention = ConditionalAttention(config.width, config.heads, config.dropout)
        self.cross_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(config.width, config.feedforward, config.dropout)

    def forward(
        self, x: Tensor, places: Tensor, where: Tensor, memory: Tensor, positions: Tensor, mask: Tensor | None
    ) -> Tensor:
        placed = x + places
        x = self.self_norm(x + self.dropout(self.self_attention(placed, placed, x)))
        x = self.cross_norm(x + self.dropout(self.cross_attention(x, where, memory, positions, mask)))
        y: Tensor = self.feedforward(x)
        return y


class ConditionalAttention(Attention):
    """Content and place are compared apart: side by side in every head (Conditional DETR, arXiv 2108.06152)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, dropout)
        self.q_place, self.k_place = nn.Linear(width, width), nn.Linear(width, width)
        self.k_place.load_state_dict(self.q_place.state_dict())  # alike, so that near places attract from the start

    def forward(  # type: ignore[override]
        self, x: Tensor, where: Tensor, memory: Tensor, positions: Tensor, mask: Tensor | None
    ) -> Tensor:
        q = torch.cat([self.split(self.q(x)), self.split(self.q_place(where))], dim=-1)
        k = torch.cat([self.split(self.k(memory)), self.split(self.k_place(positions))], dim=-1)
        return self.attend(q, k, self.split(self.v(memory)), mask)


def rare_classifier(width: int, num_classes: int) -> nn.Linear:
    """Each class by itself, and unlikely before training."""
    classifier = nn.Linear(width, num_classes)
    nn.init.constant_(classifier.bias, -math.log(1 / PRIOR - 1))
    return classifier


def starting_at(value: float, mlp: MLP) -> MLP:
    """Makes every output nearly `value` before training."""
    last = mlp[-1]
    assert isinstance(last, nn.Linear)
    nn.init.xavier_uniform_(last.weight, gain=1e-2)
    nn.init.constant_(last.bias, value)
    return mlp


def repeated(objects: Objects, copies: int) -> Objects:
    """Every image's objects several times."""
    boxes, labels = (
        torch.cat([of_image.repeat(copies, *[1] * (of_image.ndim - 1)) for of_image in torch.split(x, objects.counts)])
        for x in (objects.boxes, objects.labels)
    )
    return Objects(boxes, labels, [count * copies for count in objects.counts])

"""DETR's head: learned queries and a softmax with "no object" (Carion et al., arXiv 2005.12872).

Legend: B images, Q queries, D width, L decoder layers, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.heads.class_rows import BACKGROUND, rows
from detkit.nn.heads.set_head import (
    ClassPrediction,
    ClassTargets,
    DETROutputs,
    OneLevelSetHead,
    SetHeadConfig,
    picture_sides,
)
from detkit.nn.losses import weighted_cross_entropy
from detkit.nn.transformer import MLP, Decoder
from detkit.ops.boxes import at_least_float32
from detkit.structures import Size


class DETRHeadConfig(SetHeadConfig):
    name: Literal["detr"] = "detr"
    no_object_weight: float = Field(0.1, gt=0)  # in the cross-entropy, of a query without an object (section 3.1)


class DETRHead(OneLevelSetHead[DETROutputs]):
    """`forward` returns logits `[L, B, Q, K + 1]`, "no object" last."""

    def __init__(self, config: DETRHeadConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes, SoftmaxClasses(num_classes, config.no_object_weight))
        width = config.transformer.width
        self.queries = nn.Parameter(torch.randn(config.num_queries, width))
        self.decoder = Decoder(config.transformer)
        self.classifier = nn.Linear(width, num_classes + 1)
        self.regressor = MLP(width, width, width, 4)

    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> DETROutputs:
        memory, pos_embed, _, mask = self.encode(features[-1], sizes, canvas)
        query_pos = self.queries.expand(memory.shape[0], -1, -1)
        hidden_states = self.decoder(query_pos, memory, pos_embed, mask)
        boxes = at_least_float32(self.regressor(hidden_states)).sigmoid()
        return DETROutputs(self.classifier(hidden_states), boxes, picture_sides(sizes))

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        return {"classifier": rows(range(num_classes), BACKGROUND)}


class SoftmaxClasses(ClassPrediction):
    """One of K classes, or "no object", which is the last of K + 1 logits."""

    def __init__(self, num_classes: int, no_object_weight: float) -> None:
        self.num_classes, self.no_object_weight = num_classes, no_object_weight

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The probability without a logarithm, commensurate with the costs of boxes (section 3.1)."""
        return -logits.softmax(dim=-1)[:, :, labels]

    def loss(self, logits: Tensor, targets: ClassTargets) -> Tensor:
        """The mean over the predictions, weighted by their labels, as published."""
        label_weights = logits.new_ones(self.num_classes + 1)
        label_weights[-1] = self.no_object_weight
        labels = targets.labels
        losses = weighted_cross_entropy(logits.flatten(0, 2), labels.flatten(), label_weights).view_as(labels)
        total_weights = (label_weights[labels] * targets.counted).sum(dim=(1, 2))
        return (losses * targets.weights).sum(dim=(1, 2)) / total_weights.clamp(min=torch.finfo(logits.dtype).tiny)

    def scores(self, logits: Tensor) -> Tensor:
        """A prediction is a detection of its best class only."""
        scores = logits.softmax(dim=-1)[..., :-1]
        return scores.where(scores == scores.amax(dim=-1, keepdim=True), 0.0)

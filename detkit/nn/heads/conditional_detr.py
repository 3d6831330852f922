"""Conditional DETR's head: every query attends first to what lies near its reference point (Meng et al., arXiv
2108.06152).

Legend: B images, S cells of the feature map, Q queries, D width, L decoder layers, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.conditional import conditional_layers, draw_weights
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.set_head import (
    DETROutputs,
    OneLevelSetHead,
    SetHeadConfig,
    SigmoidClasses,
    classifier_with_prior,
    picture_sides,
)
from detkit.nn.losses import FocalLossConfig
from detkit.nn.transformer import MLP, TransformerConfig, sine_embedding, zero_output
from detkit.ops.boxes import at_least_float32
from detkit.structures import Size


class ConditionalDETRHeadConfig(SetHeadConfig):
    name: Literal["conditional_detr"] = "conditional_detr"
    num_queries: int = Field(300, ge=1)
    class_cost: float = Field(2.0, ge=0)
    class_weight: float = Field(2.0, ge=0)
    focal: FocalLossConfig = FocalLossConfig()
    class_prior: float = Field(0.01, gt=0, lt=1)  # probability of a class before training


class ConditionalDETRHead(OneLevelSetHead[DETROutputs]):
    """`forward` returns logits `[L, B, Q, K]`, those of a sigmoid for each class."""

    def __init__(self, config: ConditionalDETRHeadConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes, SigmoidClasses(num_classes, config.focal))
        width = config.transformer.width
        self.queries = nn.Parameter(torch.randn(config.num_queries, width))
        self.decoder = ConditionalDecoder(config.transformer, config.temperature)
        self.classifier = classifier_with_prior(width, num_classes, config.class_prior)
        self.regressor = zero_output(MLP(width, width, width, 4))

    @override
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> DETROutputs:
        memory, pos_embed, _, mask = self.encode(features[-1], sizes, canvas)
        query_pos = self.queries.expand(memory.shape[0], -1, -1)
        hidden_states, references = self.decoder(query_pos, memory, pos_embed, mask)
        moves = at_least_float32(self.regressor(hidden_states))
        boxes = (moves + F.pad(references, (0, 2))).sigmoid()
        return DETROutputs(self.classifier(hidden_states), boxes, picture_sides(sizes))

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        return {"classifier": rows(range(num_classes))}


class ConditionalDecoder(nn.Module):
    """Hidden states start at zero. The layers share the norm and the reference points.

    reference  MLP: position embedding of a query -> its reference point (x, y) before the sigmoid
    scale      MLP: hidden state -> factors of the sines of the reference point, from the second layer on
    """

    def __init__(self, config: TransformerConfig, temperature: float) -> None:
        super().__init__()
        width = config.width
        self.temperature = temperature
        self.layers = conditional_layers(config)
        self.norm = nn.LayerNorm(width)
        self.scale = MLP(width, width, width)
        self.reference = MLP(width, width, 2)
        draw_weights(self)

    def forward(
        self, query_pos: Tensor, memory: Tensor, pos_embed: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """
        query_pos  `[B, Q, D]`
        memory     `[B, S, D]` with its position embedding `pos_embed`, `[B, S, D]`
        Returns the normalised hidden states `[L, B, Q, D]`, and the reference points `[B, Q, 2]` before the sigmoid.
        """
        references = at_least_float32(self.reference(query_pos))
        sine_embed = sine_embedding(references.sigmoid().flip(-1), query_pos.shape[-1], self.temperature)
        sine_embed = sine_embed.to(query_pos.dtype)
        hidden, hidden_states = torch.zeros_like(query_pos), []
        for number, layer in enumerate(self.layers):
            scaled = sine_embed * self.scale(hidden) if number else sine_embed
            hidden = layer(hidden, query_pos, scaled, memory, pos_embed, mask)
            hidden_states.append(self.norm(hidden))
        return torch.stack(hidden_states), references

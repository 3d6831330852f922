"""Decoder layers in which content and position have projections of their own (Conditional DETR, Meng et al., arXiv
2108.06152, section 3.3). DAB-DETR has the same ones.

Legend: B images, S cells of the feature map, Q queries, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.transformer import Attention, DecoderLayer, TransformerConfig


class ConditionalSelfAttention(Attention):
    """Queries attend to each other; content and position are projected apart and then added."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, dropout)
        self.q_pos, self.k_pos = nn.Linear(width, width), nn.Linear(width, width)

    @override
    def forward(self, hidden: Tensor, query_pos: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        """mask: bool, broadcastable to `[B, heads, Q, Q]`, True where a query (row) may attend; None: everywhere."""
        q = self.q(hidden) + self.q_pos(query_pos)
        k = self.k(hidden) + self.k_pos(query_pos)
        return self.attend(self.split(q), self.split(k), self.split(self.v(hidden)), mask)


class ConditionalAttention(Attention):
    """Queries attend to a memory; content and position lie side by side in every head, so that each compares apart.

    first  of the first layer, whose queries have no content yet: positions are also added to the content
    """

    def __init__(self, width: int, heads: int, dropout: float, first: bool) -> None:
        super().__init__(width, heads, dropout)
        self.q_sine, self.k_pos = nn.Linear(width, width), nn.Linear(width, width)
        self.q_pos = nn.Linear(width, width) if first else None

    @override
    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        query_pos: Tensor,
        query_sine_embed: Tensor,
        memory: Tensor,
        pos_embed: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        q, k, k_pos = self.q(hidden), self.k(memory), self.k_pos(pos_embed)
        if self.q_pos is not None:
            q, k = q + self.q_pos(query_pos), k + k_pos
        q = torch.cat([self.split(q), self.split(self.q_sine(query_sine_embed))], dim=-1)
        k = torch.cat([self.split(k), self.split(k_pos)], dim=-1)
        return self.attend(q, k, self.split(self.v(memory)), mask)


class ConditionalDecoderLayer(DecoderLayer):
    def __init__(self, config: TransformerConfig, first: bool) -> None:
        super().__init__(config)
        self.self_attention = ConditionalSelfAttention(config.width, config.heads, config.dropout)
        self.cross_attention = ConditionalAttention(config.width, config.heads, config.dropout, first)

    @override
    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        query_pos: Tensor,
        query_sine_embed: Tensor,
        memory: Tensor,
        pos_embed: Tensor,
        mask: Tensor | None,
        self_mask: Tensor | None = None,
    ) -> Tensor:
        """
        hidden            `[B, Q, D]`: the content of the queries
        query_pos         `[B, Q, D]`: their position embedding among each other, and in the memory in the first layer
        query_sine_embed  `[B, Q, D]`: sines of their position in the memory
        memory            `[B, S, D]` with the position embedding `pos_embed`, `[B, S, D]`
        mask, self_mask   of the attention to the memory, and to each other
        """
        attended = self.self_attention(hidden, query_pos, self_mask)
        hidden = self.self_norm(hidden + self.dropout(attended))
        attended = self.cross_attention(hidden, query_pos, query_sine_embed, memory, pos_embed, mask)
        hidden = self.cross_norm(hidden + self.dropout(attended))
        y: Tensor = self.feedforward(hidden)
        return y


def conditional_layers(config: TransformerConfig) -> nn.ModuleList:
    return nn.ModuleList(ConditionalDecoderLayer(config, number == 0) for number in range(config.decoder_layers))


def draw_weights(module: nn.Module) -> None:
    """Every matrix by itself with Xavier's bound, as in the published decoders."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)

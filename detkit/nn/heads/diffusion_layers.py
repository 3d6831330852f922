"""One of DiffusionDet's heads (arXiv 2211.09788, section 3.2): Sparse R-CNN's (arXiv 2011.12450, section 3.4), told the
time of the diffusion.

Legend: B images, N boxes of an image, W width, D width of the dynamic convolution, S cells of a pooled box, K classes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.heads.set_head import classifier_with_prior
from detkit.nn.transformer import Attention, FeedForward

TIME_FACTOR = 4  # numbers in the embedding of the time, in widths


class DiffusionLayerConfig(Config):
    """Defaults: DiffusionDet's."""

    heads: int = Field(8, ge=1)  # of the attention among the boxes
    dynamic_width: int = Field(64, ge=1)
    feedforward: int = Field(2048, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    class_layers: int = Field(1, ge=0)  # before the classifier
    box_layers: int = Field(3, ge=0)  # before the regressor


class DynamicConv(nn.Module):
    """Two 1x1 convolutions on each pooled box, with weights that its own feature decides; then all cells at once."""

    def __init__(self, width: int, dynamic_width: int, cells: int) -> None:
        super().__init__()
        self.dynamic_width = dynamic_width
        self.weights = nn.Linear(width, 2 * width * dynamic_width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dynamic_width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.out = nn.Linear(cells * width, width)

    def forward(self, hidden: Tensor, pooled: Tensor) -> Tensor:
        """hidden `[B, N, W]`, pooled `[B * N, S, W]` -> `[B, N, W]`."""
        width, narrow = hidden.shape[2], self.dynamic_width
        first, second = self.weights(hidden).flatten(0, 1).chunk(2, dim=1)
        cells = self.norm1(torch.bmm(pooled, first.reshape(-1, width, narrow))).relu()
        cells = self.norm2(torch.bmm(cells, second.reshape(-1, narrow, width))).relu()
        y: Tensor = self.norm3(self.out(cells.flatten(1))).relu()
        return y.view_as(hidden)


class DiffusionLayer(nn.Module):
    """
    cells        of a pooled box
    class_prior  probability of a class before training
    """

    def __init__(
        self, config: DiffusionLayerConfig, width: int, cells: int, num_classes: int, class_prior: float
    ) -> None:
        super().__init__()
        self.attention = Attention(width, config.heads, config.dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.dynamic = DynamicConv(width, config.dynamic_width, cells)
        self.dynamic_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.feedforward = FeedForward(width, config.feedforward, config.dropout)
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(TIME_FACTOR * width, 2 * width))
        self.class_tower = _tower(width, config.class_layers)
        self.box_tower = _tower(width, config.box_layers)
        self.classifier = classifier_with_prior(width, num_classes, class_prior)
        self.regressor = nn.Linear(width, 4)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and not name.startswith("attention."):
                nn.init.xavier_uniform_(weight)
        nn.init.normal_(self.regressor.weight, std=0.001)  # boxes stay at first (Fast R-CNN, section 2.3)
        nn.init.zeros_(self.regressor.bias)

    def forward(self, hidden: Tensor, pooled: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        hidden  `[B, N, W]`: a feature of each box
        pooled  `[B * N, S, W]`: what is in the boxes
        time    `[B, 4 W]`
        Returns the next feature `[B, N, W]`, to which the time has not been told, logits `[B, N, K]` and deltas
        `[B, N, 4]`.
        """
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, hidden, hidden)))
        hidden = self.dynamic_norm(hidden + self.dropout(self.dynamic(hidden, pooled)))
        hidden = self.feedforward(hidden)
        scale, shift = self.time(time)[:, None].chunk(2, dim=2)
        timed = hidden * (scale + 1) + shift
        return hidden, self.classifier(self.class_tower(timed)), self.regressor(self.box_tower(timed))


def time_embedding(width: int) -> nn.Sequential:
    """`[B, W]` -> `[B, 4 W]`, from sines and cosines of the time."""
    wide = TIME_FACTOR * width
    return nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, wide))


def _tower(width: int, layers: int) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for _ in range(layers):
        blocks += [nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*blocks)

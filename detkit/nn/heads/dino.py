"""DINO's head (Zhang et al., arXiv 2203.03605): queries whose boxes the encoder proposes and whose content is a
parameter, boxes that learn from the layer after them too, and denoising queries with negatives.

Legend: B images, S cells of all levels together, Q queries, denoising ones included, W width, L decoder layers,
K classes. Boxes and positions are cxcywh in parts of the picture's sides, padding excluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.deformable import (
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableTransformerConfig,
    Levels,
    box_pos_embed,
    moved,
)
from detkit.nn.denoising import DenoisingConfig
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.denoised import DenoisedSetHead, DenoisedSetHeadConfig, Queries
from detkit.nn.heads.set_head import DETROutputs, SetSelectionConfig, SigmoidClasses, classifier_with_prior
from detkit.nn.transformer import MLP, zero_output
from detkit.ops.boxes import at_least_float32

NEAREST_ZERO = 1e-3  # coordinates are this far from 0 and 1 before a logit is taken (the authors' code)


class DINOTransformerConfig(DeformableTransformerConfig):
    feedforward: int = Field(2048, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)


class DINODenoisingConfig(DenoisingConfig):
    """Defaults: the authors' code; the paper has a `box_noise` of 1 (section 4.1)."""

    box_noise: float = Field(0.4, ge=0)
    empty: float = Field(0.5, ge=0, le=1)


class DINOSelectionConfig(SetSelectionConfig):
    max_detections: int = Field(300, ge=1)


class DINOHeadConfig(DenoisedSetHeadConfig):
    """Defaults: DINO R50 of the authors' code."""

    name: Literal["dino"] = "dino"
    transformer: DINOTransformerConfig = DINOTransformerConfig()
    num_queries: int = Field(900, ge=1)
    temperature: float = Field(20.0, gt=1)  # longest wavelength of the position embeddings of cells
    query_temperature: float = Field(10000.0, gt=1)  # and of those of boxes
    denoising: DINODenoisingConfig | None = DINODenoisingConfig()
    selection: DINOSelectionConfig = DINOSelectionConfig()


class DINOHead(DenoisedSetHead):
    """All decoder layers share one classifier and one regressor; the encoder's cells have their own."""

    config: DINOHeadConfig

    def __init__(self, config: DINOHeadConfig, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__(config, num_classes, SigmoidClasses(num_classes, config.focal))
        transformer, levels = config.transformer, len(in_channels)
        width = transformer.width
        self.encoder = DeformableEncoder(transformer, levels, config.temperature, centered=False)
        self.decoder = nn.ModuleList(
            DeformableDecoderLayer(transformer, levels) for _ in range(transformer.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.empty(config.num_queries, width))
        self.query_pos = MLP(2 * width, width, width)
        self.classifier = classifier_with_prior(width, num_classes, config.class_prior)
        self.regressor = zero_output(MLP(width, width, width, 4))
        for parameter in (self.queries, *self.query_pos.parameters(), *self.proposer.content.parameters()):
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    @override
    def encode(self, features: list[Tensor], levels: Levels) -> Tensor:
        memory: Tensor = self.encoder(features, levels)
        return memory

    @override
    def content(self, cells: Tensor) -> Tensor:
        """The same for every picture: mixed query selection (section 3.4)."""
        return self.queries[: cells.shape[1]].expand(cells.shape[0], -1, -1)

    @override
    def decode(self, queries: Queries, memory: Tensor, levels: Levels, sides: Tensor) -> DETROutputs:
        """A layer attends around the box that the layer before it moved, without gradient. Its prediction starts from
        the same box with its gradient, by which both layers learn from it: look forward twice (section 3.5)."""
        hidden = queries.content
        start = queries.anchors.sigmoid()
        logits, boxes = [], []
        for layer in self.decoder:
            positions = start.detach()
            hidden = layer(hidden, self._pos_embed(positions, levels, hidden), positions, memory, levels, queries.mask)
            normalised = self.norm(hidden)
            logits.append(self.classifier(normalised))
            boxes.append(moved(start, at_least_float32(self.regressor(normalised)), NEAREST_ZERO))
            start = moved(positions, at_least_float32(self.regressor(hidden)), NEAREST_ZERO)
        return DETROutputs(torch.stack(logits), torch.stack(boxes), sides)

    def _pos_embed(self, positions: Tensor, levels: Levels, hidden: Tensor) -> Tensor:
        """`[B, Q, W]`"""
        embedding = box_pos_embed(positions, levels, 2 * hidden.shape[2], self.config.query_temperature)
        pos_embed: Tensor = self.query_pos(embedding.to(hidden.dtype))
        return pos_embed

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        return super().class_rows(num_classes) | {"classifier": rows(range(num_classes))}

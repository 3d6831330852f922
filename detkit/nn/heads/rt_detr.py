"""The head of RT-DETR (Zhao et al., arXiv 2304.08069) and of RT-DETRv2 (Lv et al., arXiv 2407.17140): a decoder whose
queries start at the likeliest cells, with predictions of each layer and denoising queries.

Legend: B images, S cells of all levels together, Q queries, denoising ones included, W width, L decoder layers,
K classes. Boxes and positions are cxcywh in parts of the picture's sides, padding excluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.blocks import ConvBlock
from detkit.nn.deformable import DeformableDecoderLayer, DeformableTransformerConfig, Levels, moved
from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.denoised import DenoisedSetHead, DenoisedSetHeadConfig, Queries
from detkit.nn.heads.quality_classes import QualityClasses
from detkit.nn.heads.set_head import DETROutputs, SetSelectionConfig, classifier_with_prior
from detkit.nn.losses import MatchabilityLossConfig, VarifocalLossConfig
from detkit.nn.transformer import MLP, zero_output
from detkit.ops.boxes import at_least_float32


class RTDETRTransformerConfig(DeformableTransformerConfig):
    encoder_layers: int = Field(0, ge=0, le=0)  # the encoder is the neck
    dropout: float = Field(0.0, ge=0, lt=1)


class RTDETRSelectionConfig(SetSelectionConfig):
    max_detections: int = Field(300, ge=1)


class RTDETRHeadConfig(DenoisedSetHeadConfig):
    """Defaults: RT-DETR R50. R18 has 3 decoder layers, R34 4; R50-m has 6, of which 3 run in evaluation. RT-DETRv2 may
    have another number of points in each level, and discrete sampling."""

    name: Literal["rt_detr"] = "rt_detr"
    transformer: RTDETRTransformerConfig = RTDETRTransformerConfig()
    layers_at_test: int | None = Field(None, ge=1)  # decoder layers that run in evaluation; null: all
    varifocal: VarifocalLossConfig = VarifocalLossConfig()
    matchability: MatchabilityLossConfig | None = None  # the loss of the classes instead of `varifocal` (DEIM)
    selection: RTDETRSelectionConfig = RTDETRSelectionConfig()

    @model_validator(mode="after")
    def _layers_exist(self) -> RTDETRHeadConfig:
        layers = self.transformer.decoder_layers
        if self.layers_at_test is not None and self.layers_at_test > layers:
            raise ValueError(f"layers_at_test: there are {layers} decoder layers, found {self.layers_at_test}")
        return self


class RTDETRHead(DenoisedSetHead):
    """classifiers, regressors: one for each decoder layer."""

    config: RTDETRHeadConfig

    def __init__(self, config: RTDETRHeadConfig, in_channels: Sequence[int], num_classes: int) -> None:
        classes = QualityClasses(num_classes, config.focal, config.matchability or config.varifocal)
        super().__init__(config, num_classes, classes)
        transformer, levels = config.transformer, len(in_channels)
        width, layers = transformer.width, range(transformer.decoder_layers)
        self.project = nn.ModuleList(ConvBlock(channels, width, 1, act="linear") for channels in in_channels)
        self.decoder = nn.ModuleList(DeformableDecoderLayer(transformer, levels) for _ in layers)
        self.query_pos = MLP(4, 2 * width, width)
        self.classifiers = nn.ModuleList(classifier_with_prior(width, num_classes, config.class_prior) for _ in layers)
        self.regressors = nn.ModuleList(zero_output(MLP(width, width, width, 4)) for _ in layers)
        for layer in (*self.query_pos, *self.proposer.content):
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    @override
    def encode(self, features: list[Tensor], levels: Levels) -> Tensor:
        maps = [project(level) for project, level in zip(self.project, features, strict=True)]
        return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)

    @override
    def decode(self, queries: Queries, memory: Tensor, levels: Levels, sides: Tensor) -> DETROutputs:
        """A layer attends around the box that the layer before it moved, without gradient. Its prediction starts from
        the same box with its gradient, by which both layers learn from it (DINO, arXiv 2203.03605, section 3.5).

        In evaluation L are the layers that run.
        """
        hidden = queries.content
        start = queries.anchors.sigmoid()
        count = len(self.decoder) if self.training else self.config.layers_at_test or len(self.decoder)
        logits, boxes = [], []
        for number in range(count):
            positions = start.detach()
            query_pos = self.query_pos(positions.to(hidden.dtype))
            hidden = self.decoder[number](hidden, query_pos, positions, memory, levels, queries.mask)
            move = at_least_float32(self.regressors[number](hidden))
            logits.append(self.classifiers[number](hidden))
            boxes.append(moved(start, move))
            start = moved(positions, move)
        return DETROutputs(torch.stack(logits), torch.stack(boxes), sides)

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        own = {f"classifiers.{number}": rows(range(num_classes)) for number in range(len(self.classifiers))}
        return super().class_rows(num_classes) | own

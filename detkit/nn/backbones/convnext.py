"""ConvNeXt (Liu et al., arXiv 2201.03545) from torchvision: strides 4 to 32, each level with a norm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from detkit.nn.backbones.staged import (
    Stage,
    StagedBackbone,
    StagedConfig,
    check_weights,
    set_drop_path,
    torchvision_classifier,
)

STRIDES = (4, 8, 16, 32)


class ConvNeXtConfig(StagedConfig):
    name: Literal["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"] = "convnext_tiny"
    strides: tuple[int, ...] = STRIDES
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    drop_path: float = Field(0.2, ge=0, lt=1)  # of the last block; it grows from 0 at the first

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES

    @model_validator(mode="after")
    def _weights_exist(self) -> ConvNeXtConfig:
        check_weights(self.name, self.weights)
        return self


def build_convnext(config: ConvNeXtConfig) -> StagedBackbone:
    from torchvision.models.convnext import LayerNorm2d  # seconds to import, so not at the head

    features = torchvision_classifier(config.name, config.weights).features
    set_drop_path(features, config.drop_path)
    stages = []
    for number, stride in enumerate(STRIDES):
        before, blocks = features[2 * number], features[2 * number + 1]
        channels = len(blocks[0].layer_scale)
        parts = {"stem" if number == 0 else f"down{number}": before, f"stage{number + 1}": blocks}
        stages.append(Stage(parts, stride, channels, output=LayerNorm2d(channels, eps=1e-6)))
    return StagedBackbone(stages, config.strides, config.frozen_stages)

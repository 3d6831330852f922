"""C3D (Tran et al., arXiv 1412.0767): 3x3x3 convolutions on clips; stage k ends before pool k, at stride 2^(k-1).

Shapes: clips `[B, 3, T, H, W]`; published are T = 16 and 112 x 112 px. Pool 1 leaves time as it is and pools 2 to 5
halve it, so that the levels of 16 frames have 16, 16, 8, 4, 2 and 1 frames. The first five levels need at least 8
frames, pool 5 needs 16.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.time_pooling import ClipStagedConfig, build_stages

STRIDES = (1, 2, 4, 8, 16, 32)
LAYERS = (("1",), ("2",), ("3a", "3b"), ("4a", "4b"), ("5a", "5b"))  # convolutions between two pools
CHANNELS = (64, 128, 256, 512, 512)


class C3DConfig(ClipStagedConfig):
    """The stages have 64, 128, 256, 512 and 512 channels times `width`; a sixth is pool 5, at stride 32."""

    name: Literal["c3d"] = "c3d"
    strides: tuple[int, ...] = (16,)  # conv5b
    weights: None = None  # torchvision has none
    width: float = Field(1.0, gt=0)  # factor on the channels; 1: as published
    # after each convolution. none: as published, the convolution has a bias; bn: batch norm in place of the bias, to
    # train from random weights
    norm: Literal["none", "bn"] = "none"

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES


def build_c3d(config: C3DConfig) -> StagedBackbone:
    channels = [int(full_width * config.width) for full_width in CHANNELS]
    parts, before = [], 3
    blocks: dict[str, nn.Module] = {}
    for number, (layers, out_channels) in enumerate(zip(LAYERS, channels, strict=True), start=1):
        for layer in layers:
            blocks.update(_convolution(layer, before, out_channels, config.norm == "bn"))
            before = out_channels
        parts.append(blocks)
        blocks = {f"pool{number}": _pool(number)}
    return build_stages(config, [*parts, blocks], [*channels, before])


def _convolution(layer: str, in_channels: int, out_channels: int, norm: bool) -> dict[str, nn.Module]:
    """The blocks `conv`, `norm` where there is one, and `relu` of a layer, which ends their names, such as 3a."""
    convolution = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=not norm)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    blocks: dict[str, nn.Module] = {f"conv{layer}": convolution}
    if norm:
        blocks[f"norm{layer}"] = nn.BatchNorm3d(out_channels)
    return {**blocks, f"relu{layer}": nn.ReLU(inplace=True)}


def _pool(number: int) -> nn.MaxPool3d:
    if number == 1:
        return nn.MaxPool3d((1, 2, 2))
    # Caffe rounds sizes up, so that pool 5 makes 4 x 4 of 7 x 7.
    return nn.MaxPool3d(2, padding=(0, 1, 1) if number == 5 else 0)

"""Classifiers of clips from torchvision: R3D-18, MC3-18 and R(2+1)D-18 (Tran et al., arXiv 1711.11248), and S3D (Xie et
al., arXiv 1712.04851).

Shapes: clips `[B, 3, T, H, W]`. Levels at strides 2 to 16 for the ResNets, 2 to 32 for S3D. Of 16 frames the levels of
R3D-18 and R(2+1)D-18 have 16, 8, 4 and 2, those of MC3-18 all 16, and those of S3D 8, 8, 8, 4 and 2.
The public weights expect RGB in 0..1, normalised by mean .43216, .394666, .37645 and std .22803, .22145, .216989.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from typing_extensions import override

from detkit.nn.backbones.staged import StagedBackbone, check_weights, split, torchvision_classifier
from detkit.nn.backbones.time_pooling import ClipStagedConfig, build_stages


class TorchvisionClipConfig(ClipStagedConfig):
    """The fields of the networks that torchvision has."""

    weights: str | None = None  # torchvision weights entry, e.g. KINETICS400_V1; null: random
    # frozen_bn for pre-trained weights, bn when training from random ones
    norm: Literal["frozen_bn", "bn"] = "frozen_bn"

    @model_validator(mode="after")
    def _weights_exist(self) -> TorchvisionClipConfig:
        check_weights(self.name, self.weights)
        return self


class VideoResNetConfig(TorchvisionClipConfig):
    name: Literal["r3d_18", "mc3_18", "r2plus1d_18"] = "r3d_18"
    strides: tuple[int, ...] = (16,)

    @property
    def stage_strides(self) -> tuple[int | None, ...]:
        return (None, 2, 4, 8, 16)


class S3DConfig(TorchvisionClipConfig):
    name: Literal["s3d"] = "s3d"
    strides: tuple[int, ...] = (16,)
    # share of a batch in the running statistics; the published one takes thousands of batches, 0.1 tens
    norm_momentum: float = Field(1e-3, gt=0, le=1)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return (2, 4, 8, 16, 32)


class FrozenBatchNorm3d(nn.BatchNorm3d):
    """A batch norm of constants, which neither gradients nor batches change. Its state dict is `nn.BatchNorm3d`'s."""

    def __init__(self, norm: nn.BatchNorm3d) -> None:
        super().__init__(norm.num_features, eps=norm.eps, affine=False)
        del self.weight, self.bias
        for name, value in norm.state_dict().items():
            self.register_buffer(name, value)
        self.eval()

    @override
    def train(self, mode: bool = True) -> FrozenBatchNorm3d:
        super().train(False)
        return self


def build_video_resnet(config: VideoResNetConfig) -> StagedBackbone:
    network = torchvision_classifier(config.name, config.weights)
    if config.norm == "bn" and config.weights is None:
        _start_as_shortcuts(network)
    blocks = {name: block for name, block in network.named_children() if name not in ("avgpool", "fc")}
    parts = split(blocks, range(1, len(blocks) + 1))
    return _build(config, parts, (64, 64, 128, 256, 512))


def build_s3d(config: S3DConfig) -> StagedBackbone:
    features = torchvision_classifier("s3d", config.weights).features
    for module in features.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = config.norm_momentum
    parts = split(dict(features.named_children()), [1, 4, 7, 13, 16])  # each but the first begins with a pool
    return _build(config, parts, (64, 192, 480, 832, 1024))


def _build(
    config: TorchvisionClipConfig, parts: Sequence[Mapping[str, nn.Module]], channels: Sequence[int]
) -> StagedBackbone:
    backbone = build_stages(config, parts, channels)
    if config.norm == "frozen_bn":
        _freeze_norms(backbone)
    return backbone


def _freeze_norms(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm3d:
                setattr(module, name, FrozenBatchNorm3d(child))


@torch.no_grad()
def _start_as_shortcuts(network: Any) -> None:
    """Lets every residual block start as its shortcut, as `build_resnet` does and for its reason."""
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in layer:
            nn.init.zeros_(block.conv2[1].weight)

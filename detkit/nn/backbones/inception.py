"""GoogLeNet (Szegedy et al., arXiv 1409.4842) and Inception v3 (arXiv 1512.00567) from torchvision: stage k ends with
the last block of stride 2^k.

torchvision's GoogLeNet has batch norm, and 3x3 convolutions where the paper has 5x5. Inception v3's stem is not padded,
so that its strides are approximate: 299 x 299 gives maps of 147, 71, 35, 17, 8.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.nn.backbones.staged import (
    Stage,
    StagedBackbone,
    StagedConfig,
    check_weights,
    norm_layer,
    split,
    torchvision_classifier,
)

STRIDES = (2, 4, 8, 16, 32)
# the last block of each stride, and its channels
LAST_BLOCKS = {
    "googlenet": {"conv1": 64, "conv3": 192, "inception3b": 480, "inception4e": 832, "inception5b": 1024},
    "inception_v3": {
        "Conv2d_2b_3x3": 64,
        "Conv2d_4a_3x3": 192,
        "Mixed_5d": 288,
        "Mixed_6e": 768,
        "Mixed_7c": 2048,
    },
}


class InceptionConfig(StagedConfig):
    name: Literal["googlenet", "inception_v3"] = "googlenet"
    strides: tuple[int, ...] = (4, 8, 16, 32)
    frozen_stages: int = Field(2, ge=0)  # 2: all blocks before stride 8
    weights: str | None = None  # torchvision weights entry, e.g. IMAGENET1K_V1; null: random
    # frozen_bn for pre-trained weights, bn when training from random ones
    norm: Literal["frozen_bn", "bn"] = "frozen_bn"

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES

    @model_validator(mode="after")
    def _weights_exist(self) -> InceptionConfig:
        check_weights(self.name, self.weights)
        return self


class TransformInput(nn.Module):
    """Turns pixels normalised by ImageNet's mean and std into pixels in [-1, 1], which the public weights expect.

    Networks with random weights have it too: a checkpoint of a detector that started from public weights is loaded into
    a network that is built without them, and must see the same pixels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
        self.register_buffer("scale", (std / 0.5).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def build_inception(config: InceptionConfig) -> StagedBackbone:
    public = config.weights is not None  # their file holds the auxiliary classifiers too
    network = torchvision_classifier(config.name, config.weights, aux_logits=public, init_weights=not public)
    if config.norm == "frozen_bn":
        _freeze_batch_norms(network)
    blocks: dict[str, nn.Module] = {"transform_input": TransformInput()}
    blocks |= {name: block for name, block in network.named_children() if "aux" not in name.lower()}
    channels = LAST_BLOCKS[config.name]
    ends = [list(blocks).index(name) + 1 for name in channels]
    stages = [Stage(*stage) for stage in zip(split(blocks, ends), STRIDES, channels.values(), strict=True)]
    return StagedBackbone(stages, config.strides, config.frozen_stages)


def _freeze_batch_norms(network: nn.Module) -> None:
    """Replaces every batch norm by a frozen one of the same values; torchvision takes no `norm_layer` here."""
    for conv in list(network.modules()):
        if isinstance(norm := getattr(conv, "bn", None), nn.BatchNorm2d):
            frozen = norm_layer("frozen_bn")(norm.num_features, eps=norm.eps)
            frozen.load_state_dict(norm.state_dict())
            conv.bn = frozen

"""A detector's input spec: how large it wants its images and how their pixels become numbers.

Shapes: uint8 `[B, 3, H, W]` RGB -> float32 `[B, 3, H, W]`, normalised, exactly zero on the padding.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.structures import Batch, Size


class ShortSideConfig(Config):
    """The shorter side becomes `size` unless the longer would exceed `max_size` (the R-CNN family's rule)."""

    name: Literal["short_side"] = "short_side"
    size: int = Field(800, ge=1)  # px
    max_size: int = Field(1333, ge=1)  # px
    train_sizes: tuple[int, ...] = ()  # px, multi-scale training: one is drawn for each batch; empty: always `size`


class InputConfig(Config):
    """Mean and std are in pixel units (0-255), in the order of `channel_order`; the defaults are ImageNet's."""

    resize: ShortSideConfig = ShortSideConfig()
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channel_order: Literal["rgb", "bgr"] = "rgb"


class ImageInput(nn.Module):
    """Holds mean, std and channel order beside the weights, so that evaluation needs nothing but the checkpoint."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: InputConfig, stride: int) -> None:
        super().__init__()
        self.resize = config.resize
        self.stride = stride  # H and W of a batch are padded to a multiple of this
        self.flip_channels = config.channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def input_size(self, orig_size: Size, draw: int | None = None) -> Size:
        """The (h, w) an image is resized to; `draw` picks the training size, None means evaluation."""
        height, width = orig_size
        rule = self.resize
        sizes = rule.train_sizes if draw is not None and rule.train_sizes else (rule.size,)
        size = sizes[(draw or 0) % len(sizes)]
        scale = min(size / min(height, width), rule.max_size / max(height, width))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def forward(self, batch: Batch) -> Tensor:
        images = batch.images.flip(1) if self.flip_channels else batch.images
        pixels = (images.to(self.mean.dtype) - self.mean) / self.std
        for image, (height, width) in zip(pixels, batch.input_sizes, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return pixels

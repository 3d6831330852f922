"""A detector's input spec: how large it wants its images and how their pixels become numbers.

Shapes: uint8 `[B, 3, H, W]` RGB -> float32 `[B, 3, H, W]`, normalised, one constant on the padding. Clips are
`[B, 3, T, H, W]`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.structures import Clip, ImageId, ImageInfo, Size


class ShortSideConfig(Config):
    """The shorter side becomes `size` unless the longer would exceed `max_size` (the R-CNN family's rule)."""

    at_test: ClassVar[tuple[str, ...]] = ("size", "max_size")

    name: Literal["short_side"] = "short_side"
    size: int = Field(800, ge=1)  # px
    max_size: int = Field(1333, ge=1)  # px
    train_sizes: tuple[int, ...] = ()  # px, multi-scale training; empty: always `size`
    draw_every: int = Field(1, ge=0)  # batches that share a drawn size; 0: each image draws its own (DETR)


class StretchConfig(Config):
    """Both sides become `size`, whatever the aspect (SSD, YOLOv1)."""

    at_test: ClassVar[tuple[str, ...]] = ("size",)

    name: Literal["stretch"] = "stretch"
    size: int = Field(ge=1)  # px
    train_sizes: tuple[int, ...] = ()  # px, multi-scale training
    draw_every: int = Field(1, ge=1)  # batches that share a drawn size


class LetterboxConfig(Config):
    """The longer side becomes `size`; the rest of the square is grey, half on either side (darknet).

    centred  false: the picture lies in the upper left corner, and the canvas is no larger than its batch needs (YOLOX)
    fill     the grey, 0 to 255
    """

    at_test: ClassVar[tuple[str, ...]] = ("size",)

    name: Literal["letterbox"] = "letterbox"
    size: int = Field(416, ge=1)  # px, a multiple of the network's stride
    train_sizes: tuple[int, ...] = ()  # px, multi-scale training
    draw_every: int = Field(10, ge=1)  # batches that share a drawn size; YOLOv2, section 2: every ten
    centred: bool = True
    fill: float = Field(127.5, ge=0, le=255)


class KeepConfig(Config):
    """An image stays as large as it is: R-CNN resizes its crops, a sliding window makes a pyramid itself."""

    name: Literal["keep"] = "keep"
    draw_every: Literal[1] = 1  # nothing is drawn


ResizeConfig = Annotated[ShortSideConfig | StretchConfig | LetterboxConfig | KeepConfig, Field(discriminator="name")]


class InputConfig(Config):
    """Mean and std are in pixel units (0-255), in the order of `channel_order`; the defaults are ImageNet's."""

    resize: ResizeConfig = ShortSideConfig()
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channel_order: Literal["rgb", "bgr"] = "rgb"


class DarknetInputConfig(InputConfig):
    """RGB / 255, letterboxed: what YOLOv2 and v3 are given."""

    resize: ResizeConfig = LetterboxConfig()
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (255.0, 255.0, 255.0)


class ImageInput(nn.Module):
    """Holds mean, std and channel order beside the weights, so that evaluation needs nothing but the checkpoint.

    clip  the frames that the detector takes for each image; None: the image alone. `build_detector` says so
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: InputConfig, stride: int) -> None:
        super().__init__()
        self.config = config
        self.resize = config.resize
        self.clip: Clip | None = None
        self.stride = stride  # H and W of a batch are padded to a multiple of this
        self.flip_channels = config.channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def place(self, image_id: ImageId, orig_size: Size, draw: int | None = None, scale: float = 1.0) -> ImageInfo:
        """How an image of `orig_size` becomes an input; `draw` picks the training size, None means evaluation.

        scale  of the input's size, for test-time augmentation; a square becomes a multiple of the stride, and where an
               image stays as large as it is there is nothing to scale
        """
        (height, width), rule = orig_size, self.resize
        if isinstance(rule, KeepConfig):
            return ImageInfo(image_id, orig_size, orig_size, (1.0, 1.0))
        sizes = rule.train_sizes if draw is not None and rule.train_sizes else (rule.size,)
        size = sizes[(draw or 0) % len(sizes)]
        if scale != 1 and not isinstance(rule, ShortSideConfig):
            size = max(1, round(size * scale / self.stride)) * self.stride
        offset = (0, 0)
        match rule:
            case ShortSideConfig():
                factor = min(size / min(height, width), rule.max_size / max(height, width)) * scale
                h, w = max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
            case StretchConfig():
                h, w = size, size
            case LetterboxConfig():  # whole pixels as darknet's letterbox_image
                longer = max(height, width)
                h, w = max(1, height * size // longer), max(1, width * size // longer)
                if rule.centred:
                    offset = ((size - w) // 2, (size - h) // 2)
        return ImageInfo(image_id, orig_size, (h, w), (w / width, h / height), offset)

    def windows(self, sizes: Tensor) -> Tensor:
        """float32 `[B, 4]` xyxy in input px: where pictures of `sizes`, `[B, 2]` (h, w), lie on their canvas."""
        sides = sizes.flip(1)  # (w, h)
        corner = torch.zeros_like(sides)
        if isinstance(self.resize, LetterboxConfig) and self.resize.centred:  # on a square of the longer side
            corner = (sides.amax(dim=1, keepdim=True) - sides) // 2
        return torch.cat([corner, corner + sides], dim=1).float()

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """uint8 `[B, 3, H, W]` with pictures of `sizes`, int64 `[B, 2]` (h, w), on it, or clips `[B, 3, T, H, W]`."""
        if images.ndim == 5:  # the frames of a clip lie on the canvas alike
            frames = images.shape[2]
            normalised = self.forward(images.transpose(1, 2).flatten(0, 1), sizes.repeat_interleave(frames, dim=0))
            return normalised.view(-1, frames, *normalised.shape[1:]).transpose(1, 2)
        if self.flip_channels:
            images = images.flip(1)
        # [B, 3, H, W] in memory too, whatever the batch has: the same numbers from every loader
        pixels = (images.to(self.mean.dtype, memory_format=torch.contiguous_format) - self.mean) / self.std
        rule = self.resize
        padding = (rule.fill - self.mean[0]) / self.std[0] if isinstance(rule, LetterboxConfig) else 0.0
        x1, y1, x2, y2 = self.windows(sizes)[:, :, None].unbind(dim=1)  # each [B, 1]
        x, y = (torch.arange(side, device=images.device) for side in (images.shape[3], images.shape[2]))
        inside = ((y >= y1) & (y < y2))[:, None, :, None] & ((x >= x1) & (x < x2))[:, None, None, :]
        return torch.where(inside, pixels, padding)

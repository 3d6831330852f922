"""Images and what is annotated on them, from the file to the batch.

Legend: B images in a batch, P proposals of an image, T frames of a clip, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from detkit.structures.objects import Objects, check_array

Size = tuple[int, int]  # (h, w)
ImageId = int | str


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What is annotated on one image, in original pixels, without the picture. `size` is the (h, w) of the file."""

    image_id: ImageId
    size: Size
    objects: Objects[np.ndarray]


@dataclass(frozen=True, eq=False)
class Sample:
    """One decoded image, or a clip around one frame, and its objects on the way through augmentation.

    image      uint8 `[H, W, 3]` RGB, upright (EXIF orientation applied); a clip is `[T, H, W, 3]`
    objects    in pixels of `image`; of a clip those of its frame
    proposals  float32 `[P, 4]` xyxy in pixels of `image`, for detectors that are given them
    """

    image: np.ndarray
    objects: Objects[np.ndarray]
    image_id: ImageId
    proposals: np.ndarray | None = None

    def __post_init__(self) -> None:
        clip = (None,) if np.ndim(self.image) == 4 else ()
        check_array("Sample", "image", self.image, np.ndarray, "uint8", (*clip, None, None, 3))
        if self.proposals is not None:
            check_array("Sample", "proposals", self.proposals, np.ndarray, "float32", (None, 4))

    @property
    def size(self) -> Size:
        height, width = self.image.shape[-3:-1]
        return height, width

    @property
    def frames(self) -> np.ndarray:
        """uint8 `[T, H, W, 3]`, the same memory; T is 1 unless this is a clip."""
        return self.image if self.image.ndim == 4 else self.image[None]

    def map_frames(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The image with each frame, `[H, W, 3]`, changed by `function`, all in the same way."""
        return function(self.image) if self.image.ndim == 3 else np.stack([function(frame) for frame in self.image])


@dataclass(frozen=True)
class ImageInfo:
    """How a picture became a network input: what is needed to go back from input pixels to its own.

    orig_size   (h, w) of the picture before the resize. In training that is the augmented picture; in
                evaluation and prediction nothing is augmented, and it is the upright file itself
    input_size  (h, w) after the resize and before padding
    scale       (sx, sy): input pixels = original pixels * scale + offset
    offset      (x, y) of the picture on its canvas: 0 but for a centred letterbox, as padding is right and bottom only
    """

    image_id: ImageId
    orig_size: Size
    input_size: Size
    scale: tuple[float, float]
    offset: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class Target:
    """The objects of one image in input pixels, as tensors. Zero objects is an ordinary image."""

    objects: Objects[Tensor]

    def not_ignored(self) -> Objects[Tensor]:
        """The objects that are training targets."""
        return self._not_ignored

    @cached_property
    def _not_ignored(self) -> Objects[Tensor]:
        rows = torch.nonzero(~self.objects.ignore).squeeze(1)
        return self.objects if len(rows) == len(self.objects) else self.objects.take(rows)

    def ignored(self) -> Objects[Tensor]:
        return self.objects.take(self.objects.ignore)

    def to(self, device: torch.device | str) -> Target:
        moved = Target(self.objects.to(device))
        # Selected before the move: afterwards the CPU would wait for CUDA to know how many they are.
        same = self._not_ignored is self.objects
        moved.__dict__["_not_ignored"] = moved.objects if same else self._not_ignored.to(device)
        return moved


@dataclass(frozen=True, eq=False)
class Batch:
    """What a detector is given.

    images     uint8 `[B, 3, H, W]` RGB, padded with zeros to a common multiple of the stride; clips have a time axis,
               `[B, 3, T, H, W]`
    infos      B `ImageInfo`
    targets    B `Target`, or None when there is nothing to learn from
    proposals  B float32 `[P, 4]` xyxy in input pixels, for detectors with external proposals
    """

    images: Tensor
    infos: tuple[ImageInfo, ...]
    targets: tuple[Target, ...] | None = None
    proposals: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        clip = (None,) if self.images.ndim == 5 else ()
        check_array("Batch", "images", self.images, Tensor, "uint8", (None, 3, *clip, None, None))
        for name in ("infos", "targets", "proposals"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.images):
                raise ValueError(f"Batch.{name}: expected {len(self.images)} entries, one an image, got {len(value)}")

    def __len__(self) -> int:
        return len(self.images)

    def sizes(self) -> Tensor:
        """int64 `[B, 2]`: (h, w) of every image without its padding, where the images are."""
        return torch.tensor([info.input_size for info in self.infos], device=self.images.device)

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            targets=None if self.targets is None else tuple(target.to(device) for target in self.targets),
            proposals=None
            if self.proposals is None
            else tuple(p.to(device, non_blocking=True) for p in self.proposals),
        )

    def pin_memory(self) -> Batch:
        """Called by the data loader, so that the copy to the GPU runs beside the computation."""
        return replace(self, images=self.images.pin_memory())

"""The data that travels between rooms.

Legend: B images in a batch, N boxes of one image, H x W pixels, K classes.
Boxes are float32 `[N, 4]` xyxy in continuous absolute pixels (width = x2 - x1), sizes are `(h, w)`, labels are int64 in
`[0, K)` without a background class. Every structure is frozen and checks shapes and dtypes when it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Size = tuple[int, int]  # (h, w)
ImageId = int | str


def _check_array(owner: str, name: str, array: object, dtype: npt.DTypeLike, shape: tuple[int | None, ...]) -> None:
    wanted = f"{np.dtype(dtype).name} {_shape_text(shape)}"
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{owner}.{name}: expected a numpy array {wanted}, got {type(array).__name__}")
    if array.dtype != dtype or not _shape_fits(array.shape, shape):
        raise ValueError(f"{owner}.{name}: expected {wanted}, got {array.dtype.name} {list(array.shape)}")


def _check_tensor(
    owner: str, name: str, tensor: object, dtypes: Sequence[torch.dtype], shape: tuple[int | None, ...]
) -> None:
    wanted = f"{' or '.join(str(d) for d in dtypes)} {_shape_text(shape)}"
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{owner}.{name}: expected a tensor {wanted}, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes or not _shape_fits(tuple(tensor.shape), shape):
        raise ValueError(f"{owner}.{name}: expected {wanted}, got {tensor.dtype} {list(tensor.shape)}")


def _shape_fits(actual: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(actual) == len(wanted) and all(w is None or a == w for a, w in zip(actual, wanted, strict=True))


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What is annotated on one image, in original pixels, without the picture (numpy).

    boxes   float32 `[N, 4]` xyxy
    labels  int64 `[N]`
    ignore  bool `[N]`: VOC difficult and COCO crowd; never a training target, neither right nor wrong in evaluation
    area    float32 `[N]`, px^2: the annotated (segment) area where there is one, else the box area
    """

    image_id: ImageId
    size: Size
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    area: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.boxes)
        _check_array("GroundTruth", "boxes", self.boxes, np.float32, (None, 4))
        _check_array("GroundTruth", "labels", self.labels, np.int64, (count,))
        _check_array("GroundTruth", "ignore", self.ignore, np.bool_, (count,))
        _check_array("GroundTruth", "area", self.area, np.float32, (count,))


@dataclass(frozen=True, eq=False)
class Sample:
    """One decoded image and its objects on the way through augmentation (numpy).

    image      uint8 `[H, W, 3]` RGB, upright (EXIF orientation applied)
    boxes      float32 `[N, 4]` xyxy in pixels of `image`
    labels     int64 `[N]`
    ignore     bool `[N]`
    proposals  float32 `[P, 4]` xyxy in pixels of `image`, for detectors that are given them
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    image_id: ImageId
    proposals: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        _check_array("Sample", "image", self.image, np.uint8, (None, None, 3))
        _check_array("Sample", "boxes", self.boxes, np.float32, (None, 4))
        _check_array("Sample", "labels", self.labels, np.int64, (count,))
        _check_array("Sample", "ignore", self.ignore, np.bool_, (count,))
        if self.proposals is not None:
            _check_array("Sample", "proposals", self.proposals, np.float32, (None, 4))


@dataclass(frozen=True)
class ImageInfo:
    """How an image became a network input.

    orig_size   (h, w) of the file, upright
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
    """The objects of one image in input pixels. Zero boxes is an ordinary image.

    boxes   float32 `[N, 4]` xyxy
    labels  int64 `[N]`
    ignore  bool `[N]`
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor

    def __post_init__(self) -> None:
        count = len(self.boxes)
        _check_tensor("Target", "boxes", self.boxes, (torch.float32,), (None, 4))
        _check_tensor("Target", "labels", self.labels, (torch.int64,), (count,))
        _check_tensor("Target", "ignore", self.ignore, (torch.bool,), (count,))

    def objects(self) -> tuple[Tensor, Tensor]:
        """Boxes `[M, 4]` and labels `[M]` of the objects that are training targets: those not ignored."""
        return self.boxes[~self.ignore], self.labels[~self.ignore]

    def to(self, device: torch.device | str) -> Target:
        return Target(
            self.boxes.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.ignore.to(device, non_blocking=True),
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """What a detector is given.

    images     uint8 `[B, 3, H, W]` RGB, padded with zeros to a common multiple of the stride
    infos      B `ImageInfo`
    targets    B `Target`, or None when there is nothing to learn from
    proposals  B float32 `[P, 4]` xyxy in input pixels, for detectors with external proposals
    """

    images: Tensor
    infos: tuple[ImageInfo, ...]
    targets: tuple[Target, ...] | None = None
    proposals: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        _check_tensor("Batch", "images", self.images, (torch.uint8,), (None, 3, None, None))
        for name in ("infos", "targets", "proposals"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.images):
                raise ValueError(f"Batch.{name}: expected {len(self.images)} entries, one an image, got {len(value)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def input_sizes(self) -> list[Size]:
        """(h, w) of every image without its padding."""
        return [info.input_size for info in self.infos]

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            self.images.to(device, non_blocking=True),
            self.infos,
            None if self.targets is None else tuple(target.to(device) for target in self.targets),
            None if self.proposals is None else tuple(p.to(device, non_blocking=True) for p in self.proposals),
        )

    def pin_memory(self) -> Batch:
        """Called by the data loader, so that the copy to the GPU runs beside the computation."""
        return Batch(self.images.pin_memory(), self.infos, self.targets, self.proposals)


@dataclass(frozen=True, eq=False)
class Detections:
    """The answer for one image, in original pixels, clipped to the image, best score first.

    boxes        float32 `[N, 4]` xyxy
    scores       float32 `[N]` in [0, 1], descending
    labels       int64 `[N]`, index into `class_names`
    class_names  K names
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.boxes)
        _check_tensor("Detections", "boxes", self.boxes, (torch.float32,), (None, 4))
        _check_tensor("Detections", "scores", self.scores, (torch.float32,), (count,))
        _check_tensor("Detections", "labels", self.labels, (torch.int64,), (count,))
        if count > 1 and bool((self.scores[1:] > self.scores[:-1]).any()):
            raise ValueError("Detections.scores: expected descending order, got an increase")

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> Detections:
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device), self.class_names)

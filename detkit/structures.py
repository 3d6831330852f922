"""The data that travels between rooms.

Legend: B images in a batch, N objects of one image, P keypoints of an object, H x W pixels, K classes.
Boxes are float32 `[N, 4]` xyxy in continuous absolute pixels (width = x2 - x1), sizes are `(h, w)`, labels are int64 in
`[0, K)` without a background class. Every structure is frozen and checks shapes and dtypes when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int]  # (h, w)
ImageId = int | str

ArrayT = TypeVar("ArrayT", np.ndarray, Tensor)
OtherT = TypeVar("OtherT", np.ndarray, Tensor)
Shape = tuple[int | None, ...]  # None: any size


def _check_array(owner: str, name: str, array: object, kind: type, dtype: str, shape: Shape) -> None:
    """Raises ValueError unless `array` is a numpy array or tensor (`kind`) of this dtype and shape."""
    expected = f"{dtype} [{', '.join('?' if size is None else str(size) for size in shape)}]"
    if not isinstance(array, (np.ndarray, Tensor)) or not isinstance(array, kind):
        article = "a numpy array" if kind is np.ndarray else "a tensor"
        raise ValueError(f"{owner}.{name}: expected {article} {expected}, got {type(array).__name__}")
    expected_dtype: Any = getattr(torch, dtype) if kind is Tensor else np.dtype(dtype)
    fits = len(array.shape) == len(shape) and all(e in (None, a) for a, e in zip(array.shape, shape, strict=True))
    if array.dtype != expected_dtype or not fits:
        actual = f"{str(array.dtype).removeprefix('torch.')} {list(array.shape)}"
        raise ValueError(f"{owner}.{name}: expected {expected}, got {actual}")


@dataclass(frozen=True)
class KeypointCategories:
    """The points of an object.

    names       P names
    flip_pairs  pairs of points that change places when the picture is mirrored, such as left and right eye
    skeleton    pairs of points that a drawing joins
    sigmas      P spreads, in parts of the object's size, by which COCO scores the distance of a point
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True)
class Categories:
    """The classes of a data set. A label is an index into them.

    names      K names; public models name a class that was never used "N/A", so names may repeat
    ids        K ids that the data set itself uses, such as COCO's 1 to 90 with gaps; some tools use text
    keypoints  what the keypoints of an object are, if it has any
    """

    names: tuple[str, ...]
    ids: tuple[int | str, ...]
    keypoints: KeypointCategories | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("Categories.names: expected at least one class")
        if len(self.ids) != len(self.names):
            raise ValueError(f"Categories.ids: expected {len(self.names)}, one a name, got {len(self.ids)}")

    @staticmethod
    def of_names(names: Sequence[str]) -> Categories:
        """Categories whose ids count from 1."""
        return Categories(tuple(names), tuple(range(1, len(names) + 1)))

    def __len__(self) -> int:
        return len(self.names)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a checkpoint; `from_plain` reads them back."""
        plain: dict[str, Any] = {"names": list(self.names), "ids": list(self.ids)}
        if self.keypoints:
            plain["keypoints"] = {
                "names": list(self.keypoints.names),
                "flip_pairs": [list(pair) for pair in self.keypoints.flip_pairs],
                "skeleton": [list(pair) for pair in self.keypoints.skeleton],
                "sigmas": list(self.keypoints.sigmas),
            }
        return plain

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Categories:
        keypoints = plain.get("keypoints")
        if keypoints:
            keypoints = KeypointCategories(
                tuple(keypoints["names"]),
                tuple((a, b) for a, b in keypoints["flip_pairs"]),
                tuple((a, b) for a, b in keypoints["skeleton"]),
                tuple(keypoints["sigmas"]),
            )
        return Categories(tuple(plain["names"]), tuple(plain["ids"]), keypoints)


@dataclass(frozen=True, eq=False)
class Objects(Generic[ArrayT]):
    """The objects of an image as columns with one row an object: all numpy arrays, or all tensors on one device.

    boxes      float32 `[N, 4]` xyxy
    labels     int64 `[N]`
    ignore     bool `[N]`: VOC difficult and COCO crowd; never a training target, neither right nor wrong in evaluation.
               All False unless given
    area       float32 `[N]`, px^2: the annotated (segment) area where there is one, else the box area
    scores     float32 `[N]` in [0, 1]
    masks      bool `[N, H, W]`
    keypoints  float32 `[N, P, 3]`: x, y in pixels and visibility (0 not labelled, 1 hidden, 2 visible)
    track_ids  int64 `[N]`: the same object in several frames
    extra      further columns by name, `[N, ...]` of any dtype: they travel with the others
    """

    boxes: ArrayT = field(metadata={"dtype": "float32", "shape": (4,)})
    labels: ArrayT = field(metadata={"dtype": "int64", "shape": ()})
    ignore: ArrayT = field(default=None, metadata={"dtype": "bool", "shape": ()})  # type: ignore[assignment]
    area: ArrayT | None = field(default=None, metadata={"dtype": "float32", "shape": ()})
    scores: ArrayT | None = field(default=None, metadata={"dtype": "float32", "shape": ()})
    masks: ArrayT | None = field(default=None, metadata={"dtype": "bool", "shape": (None, None)})
    keypoints: ArrayT | None = field(default=None, metadata={"dtype": "float32", "shape": (None, 3)})
    track_ids: ArrayT | None = field(default=None, metadata={"dtype": "int64", "shape": ()})
    extra: Mapping[str, ArrayT] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind: type = Tensor if isinstance(self.boxes, Tensor) else np.ndarray
        count = len(self.boxes) if isinstance(self.boxes, kind) else None
        if self.ignore is None and count is not None:
            object.__setattr__(self, "ignore", _all_false(self.boxes))
        for name, metadata in _known_columns().items():
            value = getattr(self, name)
            if value is not None:
                rows: Shape = (None,) if name == "boxes" else (count,)
                _check_array("Objects", name, value, kind, metadata["dtype"], rows + metadata["shape"])
        for name, value in self.extra.items():
            if not isinstance(value, kind) or len(value) != count:
                raise ValueError(f"Objects.extra[{name!r}]: expected {kind.__name__} with {count} rows")

    @staticmethod
    def empty() -> Objects[np.ndarray]:
        """No object: an image without any is an ordinary image."""
        return Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.boxes)

    def columns(self) -> dict[str, ArrayT]:
        """The columns that there are, the extra ones too, by name."""
        known: dict[str, Any] = {name: getattr(self, name) for name in _known_columns()}
        return {name: value for name, value in known.items() if value is not None} | dict(self.extra)

    @staticmethod
    def from_columns(columns: Mapping[str, OtherT]) -> Objects[OtherT]:
        """Reads the result of `columns` back: names that `Objects` does not know are extra columns."""
        names = _known_columns()
        known: dict[str, Any] = {name: value for name, value in columns.items() if name in names}
        return Objects(**known, extra={name: value for name, value in columns.items() if name not in names})

    def map(self, function: Callable[[ArrayT], OtherT]) -> Objects[OtherT]:
        """The same columns, each changed by `function`."""
        return Objects.from_columns({name: function(value) for name, value in self.columns().items()})

    def take(self, rows: ArrayT | slice) -> Objects[ArrayT]:
        """The objects of these rows: indices, a mask or a slice."""
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            rows = torch.nonzero(rows).squeeze(1)  # once, not in every column: on CUDA each one waits for the device
        return self.map(lambda column: column[rows])

    def to(self, device: torch.device | str) -> Objects[Tensor]:
        """Tensors on `device`; those that are there already are not copied."""
        non_blocking = torch.device(device).type != "cpu"  # a copy to the CPU could be read before it is complete
        return self.map(lambda column: torch.as_tensor(column).to(device, non_blocking=non_blocking))

    def to_tensors(self) -> Objects[Tensor]:
        """The same memory as tensors."""
        return self.map(lambda column: column if isinstance(column, Tensor) else torch.from_numpy(column))

    def to_arrays(self) -> Objects[np.ndarray]:
        """The same memory as numpy arrays; tensors must be on the CPU."""
        return self.map(lambda column: column.numpy() if isinstance(column, Tensor) else column)

    @staticmethod
    def cat(parts: Sequence[Objects[OtherT]]) -> Objects[OtherT]:
        """One row of objects after the other. All parts have the same columns; there is at least one part."""
        names = list(parts[0].columns())
        if any(list(part.columns()) != names for part in parts):
            raise ValueError(f"Objects.cat: expected the same columns in every part, got {names} and others")
        join: Callable[[Any], Any] = torch.cat if isinstance(parts[0].boxes, Tensor) else np.concatenate
        return Objects.from_columns({name: join([part.columns()[name] for part in parts]) for name in names})


@cache
def _known_columns() -> dict[str, Mapping[str, Any]]:
    """The dtype and the shape of a row of every column of `Objects` but the extra ones."""
    return {known.name: known.metadata for known in fields(Objects) if known.name != "extra"}


def _all_false(boxes: ArrayT) -> ArrayT:
    count = len(boxes)
    if isinstance(boxes, Tensor):
        return torch.zeros(count, dtype=torch.bool, device=boxes.device)
    return np.zeros(count, np.bool_)


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What is annotated on one image, in original pixels, without the picture. `size` is the (h, w) of the file."""

    image_id: ImageId
    size: Size
    objects: Objects[np.ndarray]


@dataclass(frozen=True, eq=False)
class Sample:
    """One decoded image and its objects on the way through augmentation.

    image      uint8 `[H, W, 3]` RGB, upright (EXIF orientation applied)
    objects    in pixels of `image`
    proposals  float32 `[P, 4]` xyxy in pixels of `image`, for detectors that are given them
    """

    image: np.ndarray
    objects: Objects[np.ndarray]
    image_id: ImageId
    proposals: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_array("Sample", "image", self.image, np.ndarray, "uint8", (None, None, 3))
        if self.proposals is not None:
            _check_array("Sample", "proposals", self.proposals, np.ndarray, "float32", (None, 4))


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
        _check_array("Batch", "images", self.images, Tensor, "uint8", (None, 3, None, None))
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


@dataclass(frozen=True, eq=False)
class Detections:
    """The answer for one image, in original pixels, clipped to the image, best score first.

    objects     tensors with `scores`, which descend
    categories  what a label is an index into
    """

    objects: Objects[Tensor]
    categories: Categories

    def __post_init__(self) -> None:
        _check_array("Detections", "boxes", self.boxes, Tensor, "float32", (None, 4))
        if self.objects.scores is None:
            raise ValueError("Detections.objects: expected scores, got none")
        if bool((self.scores[1:] > self.scores[:-1]).any()):
            raise ValueError("Detections.scores: expected descending order, got an increase")

    @property
    def boxes(self) -> Tensor:
        return self.objects.boxes

    @property
    def scores(self) -> Tensor:
        assert self.objects.scores is not None
        return self.objects.scores

    @property
    def labels(self) -> Tensor:
        return self.objects.labels

    def __len__(self) -> int:
        return len(self.objects)

    def to(self, device: torch.device | str) -> Detections:
        return replace(self, objects=self.objects.to(device))

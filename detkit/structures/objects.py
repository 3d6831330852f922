"""The objects of an image as columns.

Legend: N objects of one image, P keypoints of an object, T frames of a clip, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from detkit.structures.masks import EncodedMasks, MaskCrops

ArrayT = TypeVar("ArrayT", np.ndarray, Tensor)
OtherT = TypeVar("OtherT", np.ndarray, Tensor)
Column = Literal["masks", "keypoints"]  # what objects may have beside boxes, and detectors learn
COLUMNS: tuple[Column, ...] = get_args(Column)
Shape = tuple[int | None, ...]  # None: any size


def check_array(owner: str, name: str, array: object, kind: type, dtype: str, shape: Shape) -> None:
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


@dataclass(frozen=True, eq=False)
class Objects(Generic[ArrayT]):
    """The objects of an image as columns with one row an object: all numpy arrays, or all tensors on one device.

    boxes      float32 `[N, 4]` xyxy
    labels     int64 `[N]`
    ignore     bool `[N]`: VOC difficult and COCO crowd; never a training target, neither right nor wrong in evaluation.
               All False unless given
    area       float32 `[N]`, px^2: the annotated (segment) area where there is one, else the box area
    scores     float32 `[N]` in [0, 1]
    masks      N masks: `EncodedMasks` as a file or a detector has them, `MaskCrops` in augmentation and training
    keypoints  float32 `[N, P, 3]`: x, y in pixels and visibility (0 not labelled, 1 hidden, 2 visible)
    track_ids  int64 `[N]`: the same object in several frames
    tubes      float32 `[N, T, 4]` xyxy: the boxes of the object in each frame of a clip
    extra      further columns by name, `[N, ...]` of any dtype: they travel with the others
    """

    boxes: ArrayT = field(metadata={"dtype": "float32", "shape": (4,)})
    labels: ArrayT = field(metadata={"dtype": "int64", "shape": ()})
    ignore: ArrayT = field(default=None, metadata={"dtype": "bool", "shape": ()})  # type: ignore[assignment]
    area: ArrayT | None = field(default=None, metadata={"dtype": "float32", "shape": ()})
    scores: ArrayT | None = field(default=None, metadata={"dtype": "float32", "shape": ()})
    masks: EncodedMasks | MaskCrops[ArrayT] | None = field(default=None, metadata={})
    keypoints: ArrayT | None = field(default=None, metadata={"dtype": "float32", "shape": (None, 3)})
    track_ids: ArrayT | None = field(default=None, metadata={"dtype": "int64", "shape": ()})
    tubes: ArrayT | None = field(default=None, metadata={"dtype": "float32", "shape": (None, 4)})
    extra: Mapping[str, ArrayT] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind: type = Tensor if isinstance(self.boxes, Tensor) else np.ndarray
        count = len(self.boxes) if isinstance(self.boxes, kind) else None
        if self.ignore is None and count is not None:
            object.__setattr__(self, "ignore", _all_false(self.boxes))
        for name, metadata in _known_columns().items():
            value = getattr(self, name)
            if name == "masks":
                self._check_masks(count)
            elif value is not None:
                rows: Shape = (None,) if name == "boxes" else (count,)
                check_array("Objects", name, value, kind, metadata["dtype"], rows + metadata["shape"])
        for name, value in self.extra.items():
            if not isinstance(value, kind) or len(value) != count:
                raise ValueError(f"Objects.extra[{name!r}]: expected {kind.__name__} with {count} rows")

    def _check_masks(self, count: int | None) -> None:
        masks = self.masks
        if masks is not None and not (isinstance(masks, EncodedMasks | MaskCrops) and len(masks) == count):
            actual = f"{len(masks)} of them" if isinstance(masks, EncodedMasks | MaskCrops) else type(masks).__name__
            raise ValueError(f"Objects.masks: expected EncodedMasks or MaskCrops of {count} objects, got {actual}")

    @staticmethod
    def empty() -> Objects[np.ndarray]:
        """No object: an image without any is an ordinary image."""
        return Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.boxes)

    def columns(self) -> dict[str, Any]:
        """The columns that there are, the extra ones too, by name: arrays, and masks in their own form."""
        known: dict[str, Any] = {name: getattr(self, name) for name in _known_columns()}
        return {name: value for name, value in known.items() if value is not None} | dict(self.extra)

    @staticmethod
    def from_columns(columns: Mapping[str, Any]) -> Objects[Any]:
        """Reads the result of `columns` back: names that `Objects` does not know are extra columns."""
        names = _known_columns()
        known: dict[str, Any] = {name: value for name, value in columns.items() if name in names}
        return Objects(**known, extra={name: value for name, value in columns.items() if name not in names})

    def map(self, function: Callable[[ArrayT], OtherT]) -> Objects[OtherT]:
        """The same columns, each changed by `function`, which keeps the number of rows."""
        return Objects.from_columns(
            {
                name: value.map(function) if isinstance(value, EncodedMasks | MaskCrops) else function(value)
                for name, value in self.columns().items()
            }
        )

    def take(self, rows: ArrayT | slice) -> Objects[ArrayT]:
        """The objects of these rows: indices, a mask or a slice."""
        if isinstance(rows, Tensor) and rows.dtype == torch.bool:
            rows = torch.nonzero(rows).squeeze(1)  # once, not in every column: on CUDA each one waits for the device
        return Objects.from_columns({name: column[rows] for name, column in self.columns().items()})

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
        columns = {name: [part.columns()[name] for part in parts] for name in names}
        return Objects.from_columns(
            {name: type(values[0]).cat(values) if name == "masks" else join(values) for name, values in columns.items()}
        )


@cache
def _known_columns() -> dict[str, Mapping[str, Any]]:
    """The dtype and the shape of a row of every column of `Objects` but the extra ones."""
    return {known.name: known.metadata for known in fields(Objects) if known.name != "extra"}


def _all_false(boxes: ArrayT) -> ArrayT:
    count = len(boxes)
    if isinstance(boxes, Tensor):
        return torch.zeros(count, dtype=torch.bool, device=boxes.device)
    return np.zeros(count, np.bool_)

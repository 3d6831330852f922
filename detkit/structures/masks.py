"""Masks: which pixels are an object's. As files and detections have them, and as augmentation and training have them.

Legend: N objects, H x W pixels of a picture, h x w of a window in it. A pixel (row, column) covers
[column, column + 1] x [row, row + 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

ArrayT = TypeVar("ArrayT", np.ndarray, Tensor)
OtherT = TypeVar("OtherT", np.ndarray, Tensor)
Polygons = Sequence[np.ndarray]  # the rings of one mask, each float64 [points, 2]: x, y in px
NO_MASK, POLYGONS, RUN_LENGTHS = 0, 1, 2


@dataclass(frozen=True, eq=False)
class EncodedMasks:
    """N masks as polygons or as COCO's run lengths, in flat arrays: small, and exactly what a file has.

    kinds   uint8 `[N]`: NO_MASK for an object of which only the box is known, POLYGONS or RUN_LENGTHS
    sizes   int32 `[N, 2]`: (h, w) of the picture that each lies on
    data    uint8 `[S]`: one mask after the other
    starts  int64 `[N + 1]`: where each begins in `data`

    `masks[rows]` takes indices, a mask or a slice.
    """

    kinds: np.ndarray
    sizes: np.ndarray
    data: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(masks: Sequence[Polygons | bytes | None], sizes: Sequence[tuple[int, int]]) -> EncodedMasks:
        """From polygons, the compressed `counts` of COCO's run lengths, or None, and the (h, w) of each picture."""
        kinds = [NO_MASK if mask is None else RUN_LENGTHS if isinstance(mask, bytes) else POLYGONS for mask in masks]
        parts = [_to_bytes(mask) for mask in masks]
        return EncodedMasks(
            np.array(kinds, np.uint8),
            np.array(sizes, np.int32).reshape(-1, 2),
            np.frombuffer(b"".join(parts), np.uint8),
            np.cumsum([0, *map(len, parts)], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, rows: Any) -> EncodedMasks:
        chosen = chosen_rows(len(self), rows)
        starts, ends = self.starts[chosen], self.starts[chosen + 1]
        return EncodedMasks(
            self.kinds[chosen],
            self.sizes[chosen],
            _join([self.data[start:end] for start, end in zip(starts, ends, strict=True)], np.uint8),
            np.cumsum([0, *(ends - starts)], dtype=np.int64),
        )

    @staticmethod
    def cat(parts: Sequence[EncodedMasks]) -> EncodedMasks:
        lengths = [np.diff(part.starts) for part in parts]
        kinds, sizes, data = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("kinds", "sizes", "data")
        )
        return EncodedMasks(kinds, sizes, data, np.cumsum([0, *np.concatenate(lengths)], dtype=np.int64))

    def map(self, function: object) -> EncodedMasks:  # noqa: ARG002
        """Itself: it is neither changed nor moved to a device."""
        return self

    def decode(self, index: int) -> list[np.ndarray] | bytes | None:
        """The polygons, the compressed `counts`, or None."""
        data = self.data[self.starts[index] : self.starts[index + 1]]
        if self.kinds[index] == RUN_LENGTHS:
            return data.tobytes()
        return None if self.kinds[index] == NO_MASK else _to_polygons(data)

    def rle(self, index: int) -> dict[str, Any] | None:
        """COCO's `{"size": [h, w], "counts": bytes}`, as pycocotools takes it; None: there is no mask."""
        from pycocotools import mask

        height, width = self.sizes[index].tolist()
        decoded = self.decode(index)
        if decoded is None or isinstance(decoded, bytes):
            return None if decoded is None else {"size": [height, width], "counts": decoded}
        rings = mask.frPyObjects([ring.ravel().tolist() for ring in decoded], height, width)
        merged: dict[str, Any] = mask.merge(rings)
        return merged

    def bitmap(self, index: int) -> np.ndarray:
        """bool `[H, W]`; without any pixel where there is no mask."""
        return _columns(self.runs(index), int(self.sizes[index, 0]), 0, int(self.sizes[index, 1]))

    def runs(self, index: int) -> np.ndarray:
        """int64: the runs down the columns, background and object in turn; where there is no mask, of background."""
        rle = self.rle(index)
        return self.sizes[index].prod(keepdims=True, dtype=np.int64) if rle is None else read_counts(rle["counts"])

    def dense(self) -> np.ndarray:
        """bool `[N, H, W]` of objects of one picture; `[0, 0, 0]` without any."""
        return np.stack([self.bitmap(index) for index in range(len(self))]) if len(self) else np.zeros((0, 0, 0), bool)

    def crops(self) -> MaskCrops[np.ndarray]:
        """The pixels of each, in the smallest window that has them all."""
        pixels, windows = [], []
        for index, height in enumerate(self.sizes[:, 0].tolist()):
            runs = self.runs(index)
            ends, own = runs.cumsum(), np.flatnonzero(runs[1::2])
            if not len(own):
                windows.append((0, 0, 0, 0))
                pixels.append(np.zeros((0, 0), np.bool_))
                continue
            x1, x2 = ends[2 * own[0]] // height, (ends[2 * own[-1] + 1] - 1) // height + 1
            columns = _columns(runs, height, x1, x2)
            rows = np.flatnonzero(columns.any(axis=1))
            windows.append((x1, rows[0], x2, rows[-1] + 1))
            pixels.append(columns[rows[0] : rows[-1] + 1])
        return MaskCrops.of(pixels, windows)


@dataclass(frozen=True, eq=False)
class MaskCrops(Generic[ArrayT]):
    """N masks of one picture as pixels, each within a window of its own, outside of which it has none.

    pixels   bool `[S]`: the h x w pixels of one window after the other, row by row, on any device
    windows  int64 `[N, 4]`, always a numpy array: x1, y1, x2, y2 in whole px, the ends not included. One without a
             pixel is that of an object whose mask is not known, or of which nothing is left

    `masks[rows]` takes indices, a mask or a slice.
    """

    pixels: ArrayT
    windows: np.ndarray

    @staticmethod
    def of(crops: Sequence[np.ndarray], windows: Sequence[Sequence[int]] | np.ndarray) -> MaskCrops[np.ndarray]:
        """From the pixels `[h, w]` of each window, and the windows."""
        pixels = _join([np.asarray(crop, np.bool_).ravel() for crop in crops], np.bool_)
        return MaskCrops(pixels, np.array(windows, np.int64).reshape(-1, 4))

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def sizes(self) -> np.ndarray:
        """int64 `[N, 2]`: (h, w) of the windows."""
        sizes: np.ndarray = (self.windows[:, 2:] - self.windows[:, :2])[:, ::-1]
        return sizes

    @property
    def starts(self) -> np.ndarray:
        """int64 `[N + 1]`: where each begins in `pixels`."""
        return np.cumsum([0, *self.sizes.prod(axis=1)], dtype=np.int64)

    def crop(self, index: int) -> ArrayT:
        """bool `[h, w]`: the pixels of one window, a view."""
        start, end = self.starts[index : index + 2].tolist()
        height, width = self.sizes[index].tolist()
        return self.pixels[start:end].reshape(height, width)

    def crops(self) -> list[ArrayT]:
        """`crop` of each."""
        starts = self.starts.tolist()
        sizes = self.sizes.tolist()
        return [self.pixels[a:b].reshape(h, w) for a, b, (h, w) in zip(starts, starts[1:], sizes, strict=False)]

    def __getitem__(self, rows: Any) -> MaskCrops[ArrayT]:
        chosen = chosen_rows(len(self), rows)
        starts = self.starts
        parts = [self.pixels[a:b] for a, b in zip(starts[chosen].tolist(), starts[chosen + 1].tolist(), strict=True)]
        pixels: Any = self.pixels[:0]
        if parts:
            pixels = torch.cat(parts) if isinstance(self.pixels, Tensor) else np.concatenate(parts)
        return MaskCrops(pixels, self.windows[chosen])

    @staticmethod
    def cat(parts: Sequence[MaskCrops[OtherT]]) -> MaskCrops[OtherT]:
        join: Callable[[Any], Any] = torch.cat if isinstance(parts[0].pixels, Tensor) else np.concatenate
        return MaskCrops(join([part.pixels for part in parts]), np.concatenate([part.windows for part in parts]))

    def map(self, function: Callable[[ArrayT], OtherT]) -> MaskCrops[OtherT]:
        """The same masks, their pixels changed by `function`, which keeps the shape."""
        return MaskCrops(function(self.pixels), self.windows)

    def dense(self, size: tuple[int, int]) -> ArrayT:
        """bool `[N, H, W]` on a picture of `size` (h, w), which holds all windows."""
        shape, pixels = (len(self), *size), self.pixels
        dense: Any = pixels.new_zeros(shape) if isinstance(pixels, Tensor) else np.zeros(shape, np.bool_)
        for mask, crop, (x1, y1, x2, y2) in zip(dense, self.crops(), self.windows.tolist(), strict=True):
            mask[y1:y2, x1:x2] = crop
        result: ArrayT = dense
        return result

    def encode(self, size: tuple[int, int]) -> EncodedMasks:
        """As run lengths on a picture of `size` (h, w), which holds all windows; pixels must be on the CPU.

        A mask without a pixel becomes one of no pixels, not NO_MASK.
        """
        from pycocotools import mask

        runs = [
            {"size": list(size), "counts": _run_lengths(np.asarray(crop), x1, y1, size)}
            for crop, (x1, y1, _, _) in zip(self.crops(), self.windows.tolist(), strict=True)
        ]
        encoded = mask.frPyObjects(runs, *size) if runs else []
        return EncodedMasks.of([rle["counts"] for rle in encoded], [size] * len(self))


def chosen_rows(count: int, rows: Any) -> np.ndarray:
    """int64: the indices that `rows` chooses among `count`; tensors come to the CPU."""
    chosen: np.ndarray = np.arange(count)[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
    return chosen


def _columns(runs: np.ndarray, height: int, first: int, end: int) -> np.ndarray:
    """bool `[height, end - first]`: these columns of the picture whose runs they are."""
    ends = runs.cumsum().clip(first * height, end * height)
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(ends, prepend=first * height))
    columns: np.ndarray = pixels.reshape(end - first, height).T
    return columns


def read_counts(counts: bytes) -> np.ndarray:
    """int64: the runs in COCO's compressed text. Raises ValueError for other bytes.

    Six bits a character, above 48: five of a number, the lowest first, and whether it goes on. The last character has
    its sign. From the fourth number on they are differences from the number two before (`rleFrString` of maskApi.c).
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & 32 == 0)
    if not len(ends) or ends[-1] != len(digits) - 1 or digits.min() < 0 or digits.max() > 63:
        raise ValueError("expected run lengths as COCO compresses them")
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)  # of each digit in its number
    if places.max() > 11:
        raise ValueError("expected run lengths as COCO compresses them, found a number of more than 60 bits")
    runs: np.ndarray = np.add.reduceat((digits & 31) << (5 * places), starts)
    runs -= np.where(digits[ends] & 16, 1 << (5 * (places[ends] + 1)), 0)
    for first in (1, 2):
        runs[first::2] = runs[first::2].cumsum()
    if runs.min() < 0:
        raise ValueError("expected run lengths as COCO compresses them, found one below 0")
    return runs


def _run_lengths(crop: np.ndarray, left: int, top: int, size: tuple[int, int]) -> list[int]:
    """The runs of a crop `[h, w]` on a picture of (h, w): down the columns, background and object in turn."""
    height, width = size
    columns = np.zeros((crop.shape[1], crop.shape[0] + 2), np.bool_)
    columns[:, 1:-1] = crop.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    changes = (left + column) * height + top + row
    # A run from the bottom of a column on to the top of the next one ends and begins at the same pixel.
    again = np.nonzero(changes[1:] == changes[:-1])[0]
    changes = np.delete(changes, np.concatenate([again, again + 1]))
    runs: list[int] = np.diff(np.concatenate([[0], changes, [height * width]])).tolist()
    return runs if runs[-1] else runs[:-1]


def _join(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _to_bytes(mask: Polygons | bytes | None) -> bytes:
    """Polygons as float64: the number of points of a ring and its coordinates, ring after ring."""
    if mask is None or isinstance(mask, bytes):
        return mask or b""
    rings = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in mask]
    return np.concatenate([np.append(len(ring), ring) for ring in rings]).tobytes() if rings else b""


def _to_polygons(data: np.ndarray) -> list[np.ndarray]:
    numbers, rings, start = np.frombuffer(data.tobytes(), np.float64), [], 0
    while start < len(numbers):
        end = start + 1 + 2 * int(numbers[start])
        rings.append(numbers[start + 1 : end].reshape(-1, 2))
        start = end
    return rings

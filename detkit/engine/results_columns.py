"""The masks and keypoints of COCO results, and the boxes around them.

Legend: N detections, P keypoints of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detkit.config import UserError
from detkit.data.coco_keypoints import HALF
from detkit.data.coco_segmentation import read_segmentation, segmentation_box
from detkit.data.dataset import plural
from detkit.structures import Column, EncodedMasks
from detkit.structures.masks import NO_MASK

Entries = Sequence[Mapping[str, Any]]
UNKNOWN = (0, 0)  # the size of a mask that is given as polygons
DETECTED = 2.0  # the visibility of a keypoint of a detection


@dataclass(frozen=True, eq=False)
class ResultColumns:
    """
    masks      None: there are none. The size of polygons is that of their image, which the file does not have, and here
               `UNKNOWN`
    keypoints  float32 `[N, P, 3]` in continuous pixels; None: there are none
    """

    masks: EncodedMasks | None = None
    keypoints: np.ndarray | None = None

    @property
    def names(self) -> tuple[Column, ...]:
        columns: dict[Column, object] = {"masks": self.masks, "keypoints": self.keypoints}
        return tuple(name for name, column in columns.items() if column is not None)


def entry_box(entry: Mapping[str, Any]) -> Sequence[Any] | None:
    """`[x, y, width, height]` of an entry: its `bbox`, else the box around its mask or around its keypoints.

    As in `loadRes` of pycocotools. A mask without a pixel has the box `[0, 0, 0, 0]`. None: it has none of them.
    """
    if entry.get("bbox"):
        bbox: Sequence[Any] = entry["bbox"]
        return bbox
    segmentation, keypoints = entry.get("segmentation"), entry.get("keypoints")
    if segmentation:
        x1, y1, x2, y2 = segmentation_box(segmentation) or (0.0, 0.0, 0.0, 0.0)
    elif keypoints:
        x1, y1, x2, y2 = min(keypoints[::3]), min(keypoints[1::3]), max(keypoints[::3]), max(keypoints[1::3])
    else:
        return None
    return x1, y1, x2 - x1, y2 - y1


def read_columns(entries: Entries, place: Callable[[int], str]) -> tuple[ResultColumns, tuple[str, ...]]:
    """The masks and keypoints, and sentences on what is unusual. `place` names an entry in a message.

    Raises UserError.
    """
    has = {name: [bool(entry.get(name)) for entry in entries] for name in ("bbox", "segmentation", "keypoints")}
    masks = _read_masks(entries, place) if any(has["segmentation"]) else None
    keypoints = _read_keypoints(entries, place) if any(has["keypoints"]) else None
    counts = {
        "detection without a bbox read as the box around its mask or keypoints": has["bbox"].count(False),
        "detection without a mask measured as the rectangle of its box": (
            0 if masks is None else int((masks.kinds == NO_MASK).sum())
        ),
    }
    notes = tuple(plural(number, phrase) for phrase, number in counts.items() if number)
    return ResultColumns(masks, keypoints), notes


def _read_masks(entries: Entries, place: Callable[[int], str]) -> EncodedMasks:
    read = []
    for number, entry in enumerate(entries):
        segmentation = read_segmentation(entry.get("segmentation"), None)
        if segmentation.problem:
            raise UserError(f"{place(number)}: {segmentation.problem}")
        read.append(segmentation)
    return EncodedMasks.of([one.mask for one in read], [one.size or UNKNOWN for one in read])


def _read_keypoints(entries: Entries, place: Callable[[int], str]) -> np.ndarray:
    """What COCO's results have as the visibility is not read: programs write all sorts of things there."""
    numbers = len(next(entry["keypoints"] for entry in entries if entry.get("keypoints")))
    rows = []
    for number, entry in enumerate(entries):
        try:
            row = np.array(entry.get("keypoints") or [], np.float64)
        except (TypeError, ValueError, OverflowError):
            row = np.zeros((0, 0))
        if row.shape != (numbers,) or numbers % 3:
            raise UserError(
                f"{place(number)}: expected {numbers // 3} 'keypoints' as x, y, visibility in one list, as the first "
                f"entry that has some, found {len(row)} numbers; give all detections the same, or none"
            )
        if not np.isfinite(row).all():
            raise UserError(f"{place(number)}: expected finite 'keypoints'; leave detections like this out of the file")
        rows.append(row)
    keypoints: np.ndarray = (np.array(rows).reshape(len(rows), -1, 3) + HALF).astype(np.float32)
    keypoints[:, :, 2] = DETECTED
    return keypoints


def with_sizes(
    masks: EncodedMasks, sizes: np.ndarray, images: Sequence[object], place: Callable[[int], str]
) -> EncodedMasks:
    """The masks at the (h, w) `sizes` `[N, 2]` of their images. Raises UserError for run lengths of another size."""
    known = (masks.sizes != UNKNOWN).any(axis=1)
    if len(rows := np.flatnonzero(known & (masks.sizes != sizes).any(axis=1))):
        row = int(rows[0])
        (own_height, own_width), (height, width) = masks.sizes[row].tolist(), sizes[row].tolist()
        raise UserError(
            f"{place(row)}: its mask is of {own_width} x {own_height} (w x h), the image {images[row]!r} of {width} x "
            f"{height}; {len(rows)} of {len(masks)} detections are like this: write masks at the size of the image"
        )
    return EncodedMasks(masks.kinds, sizes.astype(np.int32), masks.data, masks.starts)

"""Detections, and the way to other programs' forms of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from detkit.structures.batches import ImageId, Size
from detkit.structures.categories import Categories
from detkit.structures.masks import EncodedMasks
from detkit.structures.objects import Objects, check_array

if TYPE_CHECKING:
    import supervision

SHOWN = 5  # detections in a repr
Rows = SupportsIndex | slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The answer for one image, in original pixels, clipped to the image, best score first.

    objects     tensors with `scores`, which descend
    categories  what a label is an index into

    `detections[rows]` takes a mask, indices, a slice or one index, and gives `Detections` of these rows, best first;
    iterating gives `Detections` of one row after the other.
    """

    objects: Objects[Tensor]
    categories: Categories

    def __post_init__(self) -> None:
        check_array("Detections", "boxes", self.boxes, Tensor, "float32", (None, 4))
        if self.objects.scores is None:
            raise ValueError("Detections.objects: expected scores, got none")
        if not isinstance(self.objects.masks, EncodedMasks | None):
            raise ValueError(f"Detections.masks: expected EncodedMasks, got {type(self.objects.masks).__name__}")
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

    @property
    def masks(self) -> EncodedMasks | None:
        """At the size of the picture; None: the detector gives none."""
        masks = self.objects.masks
        assert masks is None or isinstance(masks, EncodedMasks)
        return masks

    @property
    def keypoints(self) -> Tensor | None:
        """float32 `[N, P, 3]`: x, y in pixels and visibility; None: the detector gives none."""
        return self.objects.keypoints

    @property
    def class_names(self) -> list[str]:
        """The name of the class of each."""
        return [self.categories.names[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, rows: Rows) -> Detections:
        """Detections of these rows, best score first. Raises IndexError for rows that there are not."""
        return replace(self, objects=self.objects.take(self._indices(rows)))

    def __iter__(self) -> Iterator[Detections]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        names = zip(self.class_names[:SHOWN], self.scores.tolist(), strict=False)
        best = ", ".join(f"{name} {score:.2f}" for name, score in names)
        more = ", ..." if len(self) > SHOWN else ""
        return f"Detections({len(self)}{': ' if best else ''}{best}{more})"

    def _indices(self, rows: Rows) -> Tensor:
        """int64 `[n]`, rising: scores descend."""
        everything = torch.arange(len(self), device=self.boxes.device)
        if isinstance(rows, SupportsIndex) and not isinstance(rows, Tensor | np.ndarray):
            index = range(len(self))[rows]  # raises IndexError
            return everything[index : index + 1]
        if isinstance(rows, slice):
            return torch.as_tensor(range(len(self))[rows], device=self.boxes.device, dtype=torch.int64).sort().values
        chosen = torch.as_tensor(rows, device=self.boxes.device)
        chosen = chosen.long() if chosen.numel() == 0 else chosen  # an empty list becomes a tensor of float32
        return everything[chosen].reshape(-1).sort().values

    def to(self, device: torch.device | str) -> Detections:
        return replace(self, objects=self.objects.to(device))

    def to_coco(self, image_id: ImageId) -> list[dict[str, Any]]:
        """The entries of a COCO results file, with the ids that the data set uses for its classes."""
        from detkit.formats import coco_results

        return coco_results(image_id, self)

    def to_yolo(self, size: Size) -> list[str]:
        """The lines of a label file, `class x y width height` in shares of the picture; `size` is its (h, w) in px."""
        from detkit.formats import yolo_lines

        return yolo_lines(self.objects, size)

    def to_voc_xml(self, name: str, size: Size) -> str:
        """The annotation of the picture file `name` of (h, w) px, as in the folder Annotations of VOC.

        VOC has no scores, and no boxes of 1 px, which are left out.
        """
        from detkit.formats import voc_xml

        return voc_xml(name, size, self.objects, self.categories.names)[0]

    def to_supervision(self) -> supervision.Detections:
        """For the library supervision, with all columns; the names of the classes are in `data["class_name"]`.

        Raises UserError if the library is not installed.
        """
        from detkit.formats import to_supervision

        return to_supervision(self)

    @staticmethod
    def from_supervision(detections: supervision.Detections, categories: Categories) -> Detections:
        """From the library supervision. A label is that of `data["class_name"]`, or without one `class_id`.

        Raises UserError for detections without scores or classes, of classes that `categories` lack, or with text.
        """
        from detkit.formats import from_supervision

        return from_supervision(detections, categories)

"""A checked data set in flat arrays: what the readers build, what the loader and the evaluators use.

Legend: I images, M objects of all images, N objects of one image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from detkit.data.checks import DataError, LabelPolicy, RawImage, check_images
from detkit.structures import GroundTruth, ImageId, Sample

MAX_CLASSES_LISTED = 40  # classes whose objects the summary counts one by one


class ImageDataset:
    """Images with their boxes, checked when it is made.

    Annotations live in a few numpy arrays, because Python objects are copied page by page into forked workers.

    class_names   K names; a label is an index into them
    category_ids  K ids that the data set itself uses, aligned with `class_names`
    name          what messages call it
    summary       one paragraph: what there is, and what the policy clipped or dropped
    """

    def __init__(
        self,
        images: Sequence[RawImage],
        *,
        name: str,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        on_bad_label: LabelPolicy = "raise",
        decode: bool = True,
        min_side: float = 0.0,
        notes: Mapping[str, int] | None = None,
    ) -> None:
        """Checks `images` (see `check_images`). Raises DataError with every problem the policy does not settle.

        notes  what the reader itself has to say in the summary, as `{"line repeated": 2}`
        """
        self.name = name
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        checked, counts = check_images(images, name, on_bad_label, decode, min_side)
        objects = [item for image in checked for item in image.objects]
        self._paths = np.array([image.path for image in checked])  # [I]
        self._image_ids = np.array([image.image_id for image in checked])  # [I]
        self._sizes = np.array([image.size for image in checked], np.int32)  # [I, 2] (h, w)
        self._starts = np.cumsum([0, *(len(image.objects) for image in checked)])  # [I + 1] first object of each image
        self._boxes = np.array([item.box for item in objects], np.float32).reshape(-1, 4)  # [M, 4]
        self._labels = np.array([item.label for item in objects], np.int64)  # [M]
        self._ignore = np.array([item.ignore for item in objects], np.bool_)  # [M]
        widths, heights = self._boxes[:, 2] - self._boxes[:, 0], self._boxes[:, 3] - self._boxes[:, 1]
        areas = np.array([np.nan if item.area is None else item.area for item in objects], np.float32)
        self._areas = np.where(np.isnan(areas), widths * heights, areas)  # [M]
        self.summary = self._summarise(Counter(notes or {}) + counts)

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Float64 `[I]`: width / height of each image."""
        return self._sizes[:, 1] / self._sizes[:, 0]

    def image_id(self, index: int) -> ImageId:
        image_id: ImageId = self._image_ids[index].item()
        return image_id

    def path(self, index: int) -> str:
        return str(self._paths[index])

    def ground_truth(self, index: int) -> GroundTruth:
        """The annotation of one image, in original pixels; does not open the picture."""
        height, width = self._sizes[index].tolist()
        rows = slice(self._starts[index], self._starts[index + 1])
        return GroundTruth(
            self.image_id(index),
            (height, width),
            self._boxes[rows].copy(),
            self._labels[rows].copy(),
            self._ignore[rows].copy(),
            self._areas[rows].copy(),
        )

    def load(self, index: int) -> Sample:
        """Decodes one image, upright and in RGB whatever the file holds. Raises DataError if it is not as checked."""
        truth, path = self.ground_truth(index), self.path(index)
        try:
            image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
        except cv2.error as error:
            raise DataError(f"{path}: the picture cannot be decoded: {error}") from error
        if image is None:
            raise DataError(f"{path}: the picture cannot be read; it was there when {self.name} was checked")
        if image.shape[:2] != truth.size:
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise DataError(f"{path}: expected {truth.size[1]} x {truth.size[0]} (w x h) as checked, found {found}")
        return Sample(image, truth.boxes, truth.labels, truth.ignore, truth.image_id)

    def _summarise(self, counts: Counter[str]) -> str:
        real = np.bincount(self._labels[~self._ignore], minlength=len(self.class_names))
        empty = int((np.diff(self._starts) == 0).sum())
        parts = [
            _plural(len(self), "image"),
            f"{_plural(int(real.sum()), 'object')} of {_plural(len(self.class_names), 'class')}"
            f" and {int(self._ignore.sum())} ignored",
            f"{_plural(empty, 'image')} without objects",
            *(_plural(number, what) for what, number in counts.items() if number),
        ]
        text = f"{self.name}: {', '.join(parts)}."
        if len(self.class_names) <= MAX_CLASSES_LISTED:
            per_class = (f"{name} {number}" for name, number in zip(self.class_names, real, strict=True))
            text += f" Objects: {', '.join(per_class)}."
        return text


def _plural(number: int, what: str) -> str:
    """`3 images`, `2 classes`, `1 box dropped`, `2 boxes dropped`."""
    noun, _, rest = what.partition(" ")
    if number != 1:
        noun += "es" if noun.endswith(("s", "x")) else "s"
    return f"{number:,} {noun} {rest}".rstrip()

"""A checked data set in flat arrays: the readers build it, the loader and the evaluators use it.

Legend: I images, M objects of all images, N objects of one image.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from detkit.config import UserError
from detkit.data.checks import Check, DataError, LabelPolicy, RawImage, check_images
from detkit.data.pictures import read_picture, reduction
from detkit.data.transforms.geometry import scale_objects
from detkit.structures import Categories, Clip, EncodedMasks, GroundTruth, ImageId, Objects, Sample, Size
from detkit.structures.masks import NO_MASK

MAX_CLASSES_LISTED = 40  # the summary counts the objects of each class where there are at most this many


class ImageDataset:
    """Images with their objects, checked when the data set is built.

    Annotations live in a few numpy arrays, because Python objects are copied page by page into forked workers.

    categories  the classes; a label is an index into them
    objects     the M objects of all images, one image after the other
    name        its name in messages
    notes       counts of what the reader saw and the policy did: `{"line repeated": 2}`
    summary     one paragraph: the images and objects, and what is unusual
    """

    def __init__(
        self,
        images: Sequence[RawImage],
        *,
        name: str,
        categories: Categories,
        on_bad_label: LabelPolicy = "raise",
        decode: bool = True,
        min_side: float = 0.0,
        notes: Mapping[str, int] | None = None,
        check: Check = check_images,
    ) -> None:
        """Checks `images` (see `check_images`). Raises DataError with every problem the policy does not settle.

        check  takes the place of `check_images`, for whoever goes on after a problem
        notes  counts that the reader adds to the summary, as `{"line repeated": 2}`
        """
        self.name = name
        self.categories = categories
        checked, counts = check(images, name, on_bad_label, decode, min_side)
        _check_labels(checked, len(categories))
        self.objects = _flat_objects(checked, name)
        self._paths = np.array([image.path for image in checked])  # [I]
        self._image_ids = _id_array([image.image_id for image in checked])  # [I]
        self._sizes = np.array([image.size for image in checked], np.int32)  # [I, 2] (h, w)
        self._starts = np.cumsum([0, *(len(image.objects) for image in checked)])  # [I + 1] first object of each image
        self.notes = Counter(notes or {}) + counts
        self.summary = self._summarise()

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def unusual(self) -> list[str]:
        """The `notes` in words: `2 lines repeated`, `1 box clipped`."""
        return [plural(number, noun) for noun, number in self.notes.items()]

    @property
    def aspect_ratios(self) -> np.ndarray:
        """float64 `[I]`: width / height of each image."""
        return self._sizes[:, 1] / self._sizes[:, 0]

    @property
    def image_of_object(self) -> np.ndarray:
        """int64 `[M]`: the index of the image on which each of `objects` is."""
        return np.repeat(np.arange(len(self)), np.diff(self._starts))

    def image_id(self, index: int) -> ImageId:
        image_id: ImageId = self._image_ids[[index]].tolist()[0]
        return image_id

    def path(self, index: int) -> str:
        return str(self._paths[index])

    def ground_truth(self, index: int) -> GroundTruth:
        """The annotation of one image, in original pixels: a copy. Does not open the picture."""
        height, width = self._sizes[index].tolist()
        objects = self.objects.take(slice(self._starts[index], self._starts[index + 1])).map(np.copy)
        return GroundTruth(self.image_id(index), (height, width), objects)

    def take(self, indices: Sequence[int]) -> ImageDataset:
        """The data set of some of the images, in this order."""
        part, rows = copy.copy(self), [np.arange(*self._starts[[index, index + 1]]) for index in indices]
        part.objects = self.objects.take(np.concatenate(rows))
        part._paths, part._image_ids, part._sizes = (
            array[list(indices)] for array in (self._paths, self._image_ids, self._sizes)
        )
        part._starts = np.cumsum([0, *map(len, rows)])
        part.notes = Counter()
        part.summary = part._summarise()
        return part

    def load(
        self,
        index: int,
        at_least: Size | None = None,
        proposals: np.ndarray | None = None,
        clip: Clip | None = None,
    ) -> Sample:
        """Decodes one image, upright and in RGB whatever the file has.

        at_least   (h, w): a JPEG may come smaller, with all that lies on it, but not smaller than this
        proposals  float32 `[R, 4]` xyxy in original pixels, which the sample is to have
        clip       the frames around it that the sample is to have, where the data set is of videos
        Raises DataError if the file is not as it was when it was checked.
        """
        if clip is not None:
            raise DataError(
                f"{self.name}: has single pictures, and this detector takes clips of {clip.frames} frames; give it "
                "videos, data: {name: clips}"
            )
        truth, path = self.ground_truth(index), self.path(index)
        try:
            image = read_picture(path, at_least)
        except UserError as error:
            raise DataError(f"{error} (it was in order when {self.name} was checked)") from error
        size, factor = (image.shape[0], image.shape[1]), reduction(truth.size, at_least)
        if size not in (truth.size, (truth.size[0] // factor, truth.size[1] // factor)):
            actual = f"{image.shape[1]} x {image.shape[0]}"
            raise DataError(f"{path}: expected {truth.size[1]} x {truth.size[0]} (w x h) as checked, found {actual}")
        objects, masks = truth.objects, truth.objects.masks
        if isinstance(masks, EncodedMasks):
            objects = replace(objects, masks=masks.crops())
        sample = Sample(image, objects, truth.image_id, proposals)
        return sample if size == truth.size else scale_objects(sample, truth.size, size)

    def describe(self, clip: Clip | None) -> list[str]:  # noqa: ARG002
        """Paragraphs: the summary, and what is unusual for a detector that takes such clips."""
        return [self.summary]

    def _summarise(self) -> str:
        names, ignore = self.categories.names, self.objects.ignore
        per_class = np.bincount(self.objects.labels[~ignore], minlength=len(names))
        empty = int((np.diff(self._starts) == 0).sum())
        parts = [
            plural(len(self), "image"),
            f"{plural(int(per_class.sum()), 'object')} of {plural(len(names), 'class')}"
            f" and {int(ignore.sum())} ignored",
            f"{plural(empty, 'image')} without objects",
            *self._lacking(),
            *self.unusual,
        ]
        text = f"{self.name}: {', '.join(parts)}."
        if len(names) <= MAX_CLASSES_LISTED:
            listed = (f"{name} {number}" for name, number in zip(names, per_class, strict=True))
            text += f" Objects: {', '.join(listed)}."
        if len(ignore) and ignore.all():
            text += "\n  Every object is ignored (marked difficult or as a crowd): nothing can be learned or measured."
        return text

    def _lacking(self) -> list[str]:
        """How many objects take no part in the loss of masks or of keypoints, where others do."""
        masks, keypoints = self.objects.masks, self.objects.keypoints
        boxes = int((masks.kinds == NO_MASK).sum()) if isinstance(masks, EncodedMasks) else 0
        bare = 0 if keypoints is None else int((keypoints[..., 2] == 0).all(axis=1).sum())
        counts = {"object with only a box, no mask": boxes, "object without labelled keypoints": bare}
        return [plural(number, noun) for noun, number in counts.items() if number]


def _id_array(image_ids: Sequence[ImageId]) -> np.ndarray:
    """`[I]`: integers or texts; where they are mixed or beyond 64 bits, Python's own objects."""
    if all(isinstance(image_id, str) for image_id in image_ids):
        return np.array(image_ids)
    try:
        return np.array([operator.index(image_id) for image_id in image_ids], np.int64)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        return np.array(image_ids, object)


def _check_labels(images: Sequence[RawImage], num_classes: int) -> None:
    for image in images:
        for item in image.objects:
            if not 0 <= item.label < num_classes:
                raise DataError(
                    f"{image.where}: {image.image_id}: {item.where}: expected a label of 0 to {num_classes - 1}, an "
                    f"index into the {num_classes} categories, found {item.label}"
                )


def _flat_objects(images: Sequence[RawImage], name: str) -> Objects[np.ndarray]:
    """The objects of all images, with every column that any of them has.

    An object without a value is not ignored, has the area of its box, no mask, and keypoints that are not labelled.
    Raises DataError for any other missing value.
    """
    objects = [item for image in images for item in image.objects]
    boxes = np.array([item.box for item in objects], np.float32).reshape(-1, 4)
    columns: dict[str, Any] = {
        "boxes": boxes,
        "labels": np.array([item.label for item in objects], np.int64),
        "ignore": np.zeros(len(objects), np.bool_),
        "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    }
    names = dict.fromkeys(key for item in objects for key in item.columns)
    if "masks" in names:
        del names["masks"]
        sizes = [image.size or (0, 0) for image in images for _ in image.objects]
        columns["masks"] = EncodedMasks.of([item.columns.get("masks") for item in objects], sizes)
    if "keypoints" in names:
        points = next(item.columns["keypoints"] for item in objects if "keypoints" in item.columns)
        columns["keypoints"] = np.zeros((len(objects), *np.shape(points)), np.float32)
    for column in names:
        columns[column] = _flat_column(column, images, columns.get(column), name)
    return Objects.from_columns(columns)


def _flat_column(column: str, images: Sequence[RawImage], defaults: np.ndarray | None, name: str) -> np.ndarray:
    """`[M, ...]`: the values of one column, and of `defaults` where an object has none. Only numbers are allowed."""
    values: list[Any] = []
    for image in images:
        for item in image.objects:
            if column in item.columns:
                values.append(item.columns[column])
            elif defaults is not None:
                values.append(defaults[len(values)])
            else:
                raise DataError(
                    f"{name}: {image.where}: {item.where} has no {column!r}, which other objects have; "
                    "give it to every object or to none"
                )
    dtype = next((known.metadata["dtype"] for known in fields(Objects) if known.name == column), None)
    try:
        array = np.array(values, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{name}: the column {column!r} is not an array of {dtype or 'one shape'}: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: the column {column!r}: expected numbers, found {array.dtype}; number its values")
    return array


def plural(number: int, phrase: str) -> str:
    """`3 images`, `2 classes`, `1 box dropped`, `2 boxes dropped`."""
    noun, _, rest = phrase.partition(" ")
    if number != 1:
        noun += "es" if noun.endswith(("s", "x")) else "s"
    return f"{number:,} {noun} {rest}".rstrip()

"""Holds the detections of a data set once, however many evaluators measure them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from detkit.structures import COLUMNS, Categories, Column, Detections, EncodedMasks, GroundTruth, ImageId, Objects
from detkit.structures.clips import split_frame_id
from detkit.structures.masks import NO_MASK


class DetectionStore:
    """The ground truth of a data set and the detections that were reported for its images so far.

    `ground_truth` has every image once, those without objects too; the names of the categories are distinct.
    `paths` has the file of each picture, in the same order; None where the pictures are not at hand.
    """

    def __init__(
        self, categories: Categories, ground_truth: Sequence[GroundTruth], paths: Sequence[str] | None = None
    ) -> None:
        self.categories = categories
        self.ground_truth = tuple(ground_truth)
        self.paths = None if paths is None else tuple(paths)
        self.detections: dict[ImageId, Detections] = {}
        self._image_ids = {image.image_id for image in self.ground_truth}
        if not self.ground_truth:
            raise ValueError("DetectionStore: expected at least one image, got none")
        if len(self._image_ids) != len(self.ground_truth):
            raise ValueError(
                f"DetectionStore: expected every image once, got {len(self.ground_truth)} images with "
                f"{len(self._image_ids)} ids"
            )
        if len(set(categories.names)) != len(categories):
            raise ValueError(f"DetectionStore: expected distinct class names, got {categories.names}")
        for image in self.ground_truth:
            self._check_labels(image.image_id, image.objects.labels)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """What objects that count have beside boxes: masks, keypoints with a labelled one."""
        return tuple(column for column in COLUMNS if self.num_with(column))

    @property
    def has_tubes(self) -> bool:
        """Whether the images are frames of videos, whose objects have tracks."""
        images = self.ground_truth
        return all(image.objects.track_ids is not None and split_frame_id(image.image_id) for image in images)

    @property
    def num_objects(self) -> int:
        """The objects that count."""
        return sum(int((~image.objects.ignore).sum()) for image in self.ground_truth)

    def num_with(self, column: Column) -> int:
        """The objects that count and have a mask, or a labelled keypoint."""
        return sum(int(_have(column, image.objects)[~image.objects.ignore].sum()) for image in self.ground_truth)

    def reset(self) -> None:
        """Forgets all detections."""
        self.detections = {}

    def update(self, image_id: ImageId, detections: Detections) -> None:
        """Adds the detections of one image, in original pixels. Images without any detection are reported too."""
        if image_id not in self._image_ids:
            raise ValueError(f"image {image_id!r}: not one of the {len(self._image_ids)} images of this data set")
        if image_id in self.detections:
            raise ValueError(
                f"image {image_id!r}: its detections were reported before; reset() starts a new evaluation"
            )
        if detections.categories.names != self.categories.names:
            raise ValueError(
                f"image {image_id!r}: expected detections of the classes {self.categories.names}, got "
                f"{detections.categories.names}"
            )
        if detections.boxes.device.type != "cpu":
            detections = detections.to("cpu")
        self._check_labels(image_id, detections.labels.numpy())
        if not (detections.boxes.isfinite().all() and detections.scores.isfinite().all()):
            raise ValueError(f"image {image_id!r}: expected finite boxes and scores, got nan or infinity")
        self.detections[image_id] = detections

    def in_order(self) -> list[Detections]:
        """The detections of every image, in the order of `ground_truth`. Raises ValueError if any are missing."""
        missing = [image.image_id for image in self.ground_truth if image.image_id not in self.detections]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.ground_truth)} images have no detections reported, the first is "
                f"{missing[0]!r}; call update() with empty Detections for an image without any"
            )
        return [self.detections[image.image_id] for image in self.ground_truth]

    def state(self) -> dict[ImageId, Objects[np.ndarray]]:
        """The detections that this process reported, as numpy arrays that can be pickled and sent to others."""
        return {image_id: detections.objects.to_arrays() for image_id, detections in self.detections.items()}

    def merge(self, states: Sequence[Mapping[ImageId, Objects[np.ndarray]]]) -> None:
        """Replaces the detections by those of all processes.

        `states` has the `state()` of every process, this one too. An image that several processes reported, because
        the last batch was filled up with images that others have too, counts once.
        """
        self.detections = {
            image_id: Detections(objects.to_tensors(), self.categories)
            for state in states
            for image_id, objects in state.items()
        }

    def _check_labels(self, image_id: ImageId, labels: np.ndarray) -> None:
        invalid = labels[(labels < 0) | (labels >= len(self.categories))]
        if len(invalid):
            raise ValueError(f"image {image_id!r}: expected labels in [0, {len(self.categories)}), got {invalid[0]}")


def _have(column: Column, objects: Objects[np.ndarray]) -> np.ndarray:
    """bool `[N]`: whether each has a mask, or a labelled keypoint."""
    have: np.ndarray = np.zeros(len(objects), np.bool_)
    if column == "masks" and isinstance(objects.masks, EncodedMasks):
        have = objects.masks.kinds != NO_MASK
    elif column == "keypoints" and objects.keypoints is not None:
        have = np.any(objects.keypoints[:, :, 2] > 0, axis=1)
    return have

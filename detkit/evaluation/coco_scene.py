"""What COCO's numbers compare, as both programs that compute them take it: the boxes, masks or keypoints of a data set.

Legend: G objects and D detections of all images, N of either, P keypoints of each.
pycocotools treats an object with the id 0 as unmatched, and it orders detections of equal score by the id of their
image. Images, classes and objects are therefore numbered from 1 here, whatever ids the data set has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO

from detkit.evaluation.flat_boxes import FlatBoxes, flat_detections, flat_objects, sort_key
from detkit.evaluation.oks import object_keypoint_similarity
from detkit.evaluation.protocols import Measured
from detkit.formats import coco_keypoints
from detkit.structures import Detections, EncodedMasks, GroundTruth, Objects, Size
from detkit.structures.masks import NO_MASK

Pairs = Sequence[tuple[GroundTruth, Detections]]
Fields = Mapping[str, Sequence[Any]]  # of annotations: the values of all of them by their name


@dataclass(frozen=True, eq=False)
class Scene:
    """Objects and detections, image after image in the order of pycocotools, compared by their boxes.

    objects     with the annotated areas
    crowd       bool `[G]`: any number of detections may match one, and the overlap is the part of the detection
    ignored     bool `[G]`: what makes detections neither right nor wrong: the crowds, and more where the boxes do not
                tell all
    detections  with the areas that decide whether one that matches nothing counts in a range of areas
    scores      float32 `[D]`, falling within an image
    sizes       (h, w) of each image
    """

    iou_type: ClassVar[str] = "bbox"

    objects: FlatBoxes
    crowd: np.ndarray
    ignored: np.ndarray
    detections: FlatBoxes
    scores: np.ndarray
    sizes: Sequence[Size]

    def overlap(self, detections: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """float64 `[d, g]`: how much the detections and objects of these rows, all of one image, overlap."""
        boxes = self.detections.xywh[detections], self.objects.xywh[objects]
        iou: np.ndarray = mask.iou(*boxes, self.crowd[objects].astype(np.uint8))
        return iou

    def object_fields(self) -> Fields:
        """Of the annotations, beside what all have."""
        return {}

    def detection_fields(self) -> Fields:
        return {}

    def to_coco(self, num_classes: int) -> tuple[COCO, COCO]:
        """The objects and the detections as data sets of pycocotools in memory."""
        objects: Fields = {"iscrowd": self.crowd.astype(np.int64).tolist(), **self.object_fields()}
        detections: Fields = {"score": self.scores.tolist(), **self.detection_fields()}
        rows = _annotations(self.objects, objects), _annotations(self.detections, detections)
        annotated, detected = (_coco(annotations, self.sizes, num_classes) for annotations in rows)
        return annotated, detected


@dataclass(frozen=True, eq=False)
class MaskScene(Scene):
    """Compared by their masks; in place of one that there is not, the box as a rectangle."""

    iou_type: ClassVar[str] = "segm"

    object_masks: EncodedMasks
    detection_masks: EncodedMasks

    def overlap(self, detections: np.ndarray, objects: np.ndarray) -> np.ndarray:
        masks = (
            _run_lengths(self.detection_masks, self.detections, detections),
            _run_lengths(self.object_masks, self.objects, objects),
        )
        iou: np.ndarray = mask.iou(*masks, self.crowd[objects].astype(np.uint8))
        return iou

    def object_fields(self) -> Fields:
        return {"segmentation": _run_lengths(self.object_masks, self.objects, np.arange(len(self.object_masks)))}

    def detection_fields(self) -> Fields:
        rows = np.arange(len(self.detection_masks))
        return {"segmentation": _run_lengths(self.detection_masks, self.detections, rows)}


@dataclass(frozen=True, eq=False)
class KeypointScene(Scene):
    """Compared by their keypoints, float64 `[N, P, 3]` as a COCO file has them.

    sigmas  float64 `[P]`
    """

    iou_type: ClassVar[str] = "keypoints"

    object_keypoints: np.ndarray
    detection_keypoints: np.ndarray
    sigmas: np.ndarray

    def overlap(self, detections: np.ndarray, objects: np.ndarray) -> np.ndarray:
        return object_keypoint_similarity(
            self.detection_keypoints[detections],
            self.object_keypoints[objects],
            self.objects.xywh[objects],
            self.objects.areas[objects],
            self.sigmas,
        )

    def object_fields(self) -> Fields:
        labelled = (self.object_keypoints[:, :, 2] > 0).sum(axis=1)
        return {"keypoints": _in_a_row(self.object_keypoints), "num_keypoints": labelled.tolist()}

    def detection_fields(self) -> Fields:
        return {"keypoints": _in_a_row(self.detection_keypoints)}


def build_scene(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[Detections],
    measured: Measured,
    sigmas: Sequence[float] = (),
) -> Scene:
    """`detections[i]` belong to `ground_truth[i]`; at least one image.

    sigmas  of the keypoints; see `KeypointCategories`
    Raises ValueError for masks of another size than their image, and for another number of keypoints.
    """
    pairs = sorted(zip(ground_truth, detections, strict=True), key=lambda pair: sort_key(pair[0].image_id))
    objects, crowd = flat_objects([image.objects for image, _ in pairs])
    flat, scores = flat_detections([image_detections for _, image_detections in pairs])
    sizes = [image.size for image, _ in pairs]
    match measured:
        case "boxes":
            return Scene(objects, crowd, crowd, flat, scores, sizes)
        case "masks":
            object_masks = _flat_masks(pairs, [image.objects for image, _ in pairs])
            detection_masks = _flat_masks(pairs, [image_detections.objects for _, image_detections in pairs])
            crowd = crowd | (object_masks.kinds == NO_MASK)
            flat = flat._replace(areas=_mask_areas(detection_masks, flat))
            return MaskScene(objects, crowd, crowd, flat, scores, sizes, object_masks, detection_masks)
        case "keypoints":
            points = _flat_keypoints(pairs, [image.objects for image, _ in pairs], len(sigmas))
            detected = _flat_keypoints(pairs, [one.objects for _, one in pairs], len(sigmas))
            ignored = crowd | ~(points[:, :, 2] > 0).any(axis=1)
            return KeypointScene(
                objects, crowd, ignored, flat, scores, sizes, points, detected, np.array(sigmas, np.float64)
            )


def _flat_masks(pairs: Pairs, parts: Sequence[Objects[Any]]) -> EncodedMasks:
    """Those of all images; of an image without any, as many that are not known."""
    all_masks = []
    for (image, _), objects in zip(pairs, parts, strict=True):
        masks = objects.masks
        if masks is None:
            masks = EncodedMasks.of([None] * len(objects), [image.size] * len(objects))
        if not isinstance(masks, EncodedMasks) or (masks.sizes != image.size).any():
            raise ValueError(f"image {image.image_id!r}: expected EncodedMasks of its size (h, w) {image.size}")
        all_masks.append(masks)
    return EncodedMasks.cat(all_masks)


def _run_lengths(masks: EncodedMasks, boxes: FlatBoxes, rows: np.ndarray) -> list[dict[str, Any]]:
    run_lengths = []
    for row in rows.tolist():
        rle = masks.rle(row)
        if rle is None:
            rle = mask.frPyObjects(boxes.xywh[[row]], *masks.sizes[row].tolist())[0]
        run_lengths.append(rle)
    return run_lengths


def _mask_areas(masks: EncodedMasks, boxes: FlatBoxes) -> np.ndarray:
    """float64 `[N]`, px^2; one mask at a time, as all at once take much memory."""
    rows = np.arange(len(masks))[:, None]
    return np.array([mask.area(_run_lengths(masks, boxes, row))[0] for row in rows], np.float64)


def _flat_keypoints(pairs: Pairs, parts: Sequence[Objects[Any]], number: int) -> np.ndarray:
    """float64 `[N, P, 3]`; of an image without any, as many that are not labelled."""
    all_keypoints = [np.zeros((0, number, 3))]
    for (image, _), objects in zip(pairs, parts, strict=True):
        if objects.keypoints is None:
            all_keypoints.append(np.zeros((len(objects), number, 3)))
        elif objects.keypoints.shape[1] != number:
            count = objects.keypoints.shape[1]
            raise ValueError(f"image {image.image_id!r}: expected {number} keypoints of an object, got {count}")
        elif len(objects):
            all_keypoints.append(np.array(coco_keypoints(np.asarray(objects.keypoints))).reshape(-1, number, 3))
    return np.concatenate(all_keypoints)


def _in_a_row(keypoints: np.ndarray) -> list[list[float]]:
    numbers: list[list[float]] = keypoints.reshape(len(keypoints), -1).tolist()
    return numbers


def _annotations(boxes: FlatBoxes, fields: Fields) -> list[dict[str, Any]]:
    """A COCO annotation of each box, numbered from 1, with these further fields."""
    arrays = {"image_id": boxes.images + 1, "category_id": boxes.labels + 1, "bbox": boxes.xywh, "area": boxes.areas}
    columns = {name: array.tolist() for name, array in arrays.items()} | dict(fields)
    rows = zip(*columns.values(), strict=True)
    return [{"id": number, **dict(zip(columns, row, strict=True))} for number, row in enumerate(rows, start=1)]


def _coco(annotations: list[dict[str, Any]], sizes: Sequence[Size], num_classes: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "height": h, "width": w} for number, (h, w) in enumerate(sizes, start=1)],
        "categories": [{"id": number} for number in range(1, num_classes + 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco

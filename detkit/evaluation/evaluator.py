"""One evaluator for training, `tools/eval.py` and Python: every image is reported once, then the numbers are asked for.

evaluator = Evaluator(class_names, category_ids, ground_truth)
for ...:
    evaluator.update(image_id, detections)
evaluation = evaluator.compute(["voc07", "coco"])
evaluation.results["voc07"].score
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from pydantic import Field

from detkit.config import Config
from detkit.evaluation.coco import CocoBackend, check_backend, coco_metrics
from detkit.evaluation.voc import voc_ap
from detkit.structures import Detections, GroundTruth, ImageId

Protocol = Literal["voc07", "voc10", "coco"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

RULES: dict[Protocol, str] = {
    "voc07": "VOC 2007 11-point, IoU > 0.5, inclusive pixels, difficult ignored",
    "voc10": "VOC 2010 area under the curve, IoU > 0.5, inclusive pixels, difficult ignored",
    "coco": "COCO, AP over IoU 0.50:0.05:0.95 and 101 recalls, 100 detections an image and class, ignored as crowd",
}

# boxes, scores, labels of one image
Arrays: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


class EvalConfig(Config):
    """
    protocol      whose headline number selects the best checkpoint
    batch_size    images at a time
    coco_backend  what computes the COCO numbers: the same bits either way, `fast` in a hundredth of the time
    amp           mixed precision of the detector: other numbers, sooner where the device has bf16
    """

    protocol: Protocol = "voc07"
    batch_size: int = Field(8, ge=1)
    coco_backend: CocoBackend = "pycocotools"
    amp: Literal["off", "bf16"] = "off"


@dataclass(frozen=True)
class ProtocolResult:
    """What one protocol says. Numbers are in [0, 1], nan where there is no object to find.

    rules      the rules in one line
    headline   the name in `metrics` of the number that stands for all: `mAP` (VOC) or `AP` (COCO)
    metrics    number by name: `mAP`, or COCO's twelve
    per_class  AP by class name
    """

    rules: str
    headline: str
    metrics: dict[str, float]
    per_class: dict[str, float]

    @property
    def score(self) -> float:
        """The headline number."""
        return self.metrics[self.headline]


@dataclass(frozen=True)
class Evaluation:
    """The results by protocol, and what they were measured on.

    num_objects  objects by class name, without the ignored ones
    num_ignored  VOC difficult or COCO crowd, all classes
    """

    results: dict[Protocol, ProtocolResult]
    num_images: int
    num_detections: int
    num_objects: dict[str, int]
    num_ignored: int


class Evaluator:
    """Collects the detections of a data set and measures them.

    `class_names` and `category_ids` (the data set's own ids) have K entries; `ground_truth` has every image once, the
    empty ones too. Raises UserError at once if `coco_backend` cannot run here.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        ground_truth: Sequence[GroundTruth],
        *,
        coco_backend: CocoBackend = "pycocotools",
    ) -> None:
        check_backend(coco_backend)
        self.coco_backend = coco_backend
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.ground_truth = tuple(ground_truth)
        self._image_ids = {image.image_id for image in self.ground_truth}
        if not self.ground_truth:
            raise ValueError("Evaluator: expected at least one image, got none")
        if len(self._image_ids) != len(self.ground_truth):
            raise ValueError(
                f"Evaluator: expected every image once, got {len(self.ground_truth)} images with "
                f"{len(self._image_ids)} ids"
            )
        if not len(self.class_names) == len(set(self.class_names)) == len(self.category_ids):
            raise ValueError(
                f"Evaluator: expected a category id for each of the distinct class names, got {self.class_names} and "
                f"{self.category_ids}"
            )
        for image in self.ground_truth:
            self._check_labels(image.image_id, image.labels)
        self.reset()

    def reset(self) -> None:
        """Forgets all detections."""
        self.detections: dict[ImageId, Detections] = {}

    def update(self, image_id: ImageId, detections: Detections) -> None:
        """Reports the detections of one image, in original pixels; an image where nothing was found is reported too."""
        if image_id not in self._image_ids:
            raise ValueError(f"image {image_id!r}: not one of the {len(self._image_ids)} images of this data set")
        if image_id in self.detections:
            raise ValueError(
                f"image {image_id!r}: its detections were reported before; reset() starts a new evaluation"
            )
        if detections.class_names != self.class_names:
            raise ValueError(
                f"image {image_id!r}: expected detections of the classes {self.class_names}, got "
                f"{detections.class_names}"
            )
        detections = detections.to("cpu")
        self._check_labels(image_id, detections.labels.numpy())
        if not (detections.boxes.isfinite().all() and detections.scores.isfinite().all()):
            raise ValueError(f"image {image_id!r}: expected finite boxes and scores, got nan or infinity")
        self.detections[image_id] = detections

    def state(self) -> dict[ImageId, Arrays]:
        """What this process was told, in numpy, to be gathered from all processes."""
        return {
            image_id: (found.boxes.numpy(), found.scores.numpy(), found.labels.numpy())
            for image_id, found in self.detections.items()
        }

    def merge(self, states: Sequence[dict[ImageId, Arrays]]) -> None:
        """Replaces what this process was told by what all were: `states` has the `state()` of each, its own too."""
        self.reset()
        for state in states:
            for image_id, arrays in state.items():
                boxes, scores, labels = map(torch.from_numpy, arrays)
                self.update(image_id, Detections(boxes, scores, labels, self.class_names))

    def compute(self, protocols: Sequence[Protocol]) -> Evaluation:
        """Measures by each protocol. Raises ValueError unless every image was reported."""
        unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
        if unknown:
            raise ValueError(f"protocol {unknown[0]!r}: expected one of {', '.join(PROTOCOLS)}")
        missing = [image.image_id for image in self.ground_truth if image.image_id not in self.detections]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.ground_truth)} images have no detections reported, the first is "
                f"{missing[0]!r}; call update() with empty Detections where nothing was found"
            )
        labels = np.concatenate([image.labels for image in self.ground_truth])
        ignore = np.concatenate([image.ignore for image in self.ground_truth])
        return Evaluation(
            results={protocol: self._measure(protocol) for protocol in protocols},
            num_images=len(self.ground_truth),
            num_detections=sum(len(found) for found in self.detections.values()),
            num_objects=self._by_class(np.bincount(labels[~ignore], minlength=len(self.class_names))),
            num_ignored=int(ignore.sum()),
        )

    def _measure(self, protocol: Protocol) -> ProtocolResult:
        num_classes = len(self.class_names)
        detections = [self.detections[image.image_id] for image in self.ground_truth]
        if protocol == "coco":
            metrics, per_class = coco_metrics(self.ground_truth, detections, num_classes, backend=self.coco_backend)
            return ProtocolResult(RULES[protocol], "AP", metrics, self._by_class(per_class))
        per_class = voc_ap(self.ground_truth, detections, num_classes, eleven_point=protocol == "voc07")
        present = per_class[~np.isnan(per_class)]
        mean = float(present.mean()) if len(present) else float("nan")
        return ProtocolResult(RULES[protocol], "mAP", {"mAP": mean}, self._by_class(per_class))

    def _by_class(self, values: np.ndarray) -> dict[str, Any]:
        return dict(zip(self.class_names, values.tolist(), strict=True))

    def _check_labels(self, image_id: ImageId, labels: np.ndarray) -> None:
        wrong = labels[(labels < 0) | (labels >= len(self.class_names))]
        if len(wrong):
            raise ValueError(f"image {image_id!r}: expected labels in [0, {len(self.class_names)}), got {wrong[0]}")

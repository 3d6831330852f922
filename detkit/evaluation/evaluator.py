"""The contract of evaluators, one class a protocol, and the summary of several over one data set.

store = DetectionStore(dataset.categories, ground_truth)
evaluators = build_evaluators(["voc07", "coco"], store)
for ...:
    store.update(image_id, detections)
evaluators["voc07"].compute().score
summarise(store, evaluators).results["voc07"].score
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detkit.evaluation.protocols import Protocol
from detkit.evaluation.store import DetectionStore
from detkit.structures import Categories


@dataclass(frozen=True)
class ProtocolResult:
    """The numbers of one protocol, in [0, 1]; nan where there is no object that counts.

    rules      the rules in one line
    headline   the name in `metrics` of the number that stands for all: `mAP` (VOC) or `AP` (COCO)
    metrics    number by name: `mAP`, or COCO's twelve, ten of keypoints
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


class Evaluator(ABC):
    """Measures the detections of a store by one protocol. Several evaluators may share the store."""

    def __init__(self, store: DetectionStore) -> None:
        self.store = store

    @abstractmethod
    def compute(self) -> ProtocolResult:
        """Measures the detections. Raises ValueError unless they were reported for every image."""


@dataclass(frozen=True)
class Evaluation:
    """The results by protocol, and how much data they were measured on.

    num_objects  objects by class name, without the ignored ones
    num_ignored  objects of all classes that are VOC difficult or COCO crowd
    notes        sentences for the user, such as which classes have another name in the data
    """

    results: dict[Protocol, ProtocolResult]
    num_images: int
    num_detections: int
    num_objects: dict[str, int]
    num_ignored: int
    notes: tuple[str, ...] = ()


def summarise(store: DetectionStore, evaluators: Mapping[Protocol, Evaluator]) -> Evaluation:
    """Measures by every evaluator. Raises ValueError unless the detections of every image were reported."""
    labels = np.concatenate([image.objects.labels for image in store.ground_truth])
    ignore = np.concatenate([image.objects.ignore for image in store.ground_truth])
    return Evaluation(
        results={protocol: evaluator.compute() for protocol, evaluator in evaluators.items()},
        num_images=len(store.ground_truth),
        num_detections=sum(map(len, store.in_order())),
        num_objects=by_class(store.categories, np.bincount(labels[~ignore], minlength=len(store.categories))),
        num_ignored=int(ignore.sum()),
    )


def by_class(categories: Categories, values: np.ndarray) -> dict[str, Any]:
    """A plain number of each class, `[K]`, by its name."""
    return dict(zip(categories.names, values.tolist(), strict=True))

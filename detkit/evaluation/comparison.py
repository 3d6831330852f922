"""Whether one of two detectors is better on the same images, or luck: bootstrap over images.

Legend: I images, K classes, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detkit.config import UserError
from detkit.evaluation.curves import best_score
from detkit.evaluation.matching import Matches, match_detections
from detkit.evaluation.protocols import MAX_DETECTIONS
from detkit.evaluation.resampling import ResampledAP, draw_weights, mean_over_classes
from detkit.evaluation.store import DetectionStore
from detkit.structures import GroundTruth

SAME_BOX = 0.01  # px: boxes of files that round them differently


@dataclass(frozen=True)
class Interval:
    """A difference, second minus first, and the interval that holds 95 % of its resamples; nan without an object."""

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds 0, so that these images do not tell which one is better."""
        return not (self.low > 0 or self.high < 0)


@dataclass(frozen=True, eq=False)
class Comparison:
    """
    first, second  the score of each on all images
    overall        difference of the scores
    per_class      difference of AP by class name
    rules          what the score is, in one line
    resamples      how many times the images were drawn, with replacement
    seed           of the drawing
    gains          int64 `[I]`: objects that only the second detects, less those that only the first does, by image of
                   the first store; at IoU 0.5, by detections that score at least what is best for F1 over all classes
    """

    first: float
    second: float
    overall: Interval
    per_class: dict[str, Interval]
    rules: str
    resamples: int
    seed: int
    gains: np.ndarray


def compare_detectors(
    first: DetectionStore,
    second: DetectionStore,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    max_detections: int = MAX_DETECTIONS,
) -> Comparison:
    """Compares COCO's AP of two detectors on the same data by a paired percentile bootstrap over the images.

    Each resample draws as many images as there are, with replacement, the same for both detectors. A class that it
    does not draw is not in its mean. Of an image and class `max_detections` count. Raises UserError if the stores have
    other images, classes or objects, and ValueError unless the detections of every image were reported to both.
    """
    _check_same(first, second)
    second.in_order()  # raises if any are missing
    images, names = first.ground_truth, first.categories.names
    both = (
        match_detections(images, first.in_order(), max_detections),
        match_detections(images, [second.detections[image.image_id] for image in images], max_detections),
    )
    measures = [ResampledAP(matches, len(images), len(names)) for matches in both]
    by_class = np.concatenate([measure(np.ones((len(images), 1))) for measure in measures], axis=1)  # [K, 2]
    scores = mean_over_classes(by_class)
    drawn = [
        _differences(measures, weights) for weights in draw_weights(len(images), resamples, seed, measures[0].dtype)
    ]
    spread = np.concatenate(drawn, axis=1)  # [K + 1, R]: the overall one comes last
    differences = np.append(by_class[:, 1] - by_class[:, 0], scores[1] - scores[0])
    intervals = [_interval(value, values) for value, values in zip(differences.tolist(), spread, strict=True)]
    rules = (
        f"COCO AP over IoU 0.50:0.05:0.95, mean over the classes that have an object; 95 % interval of {resamples:,} "
        f"resamples of the {len(images):,} images, the same for both"
    )
    return Comparison(
        first=float(scores[0]),
        second=float(scores[1]),
        overall=intervals[-1],
        per_class=dict(zip(names, intervals[:-1], strict=True)),
        rules=rules,
        resamples=resamples,
        seed=seed,
        gains=_gains(*both, len(images)),
    )


def _differences(measures: list[ResampledAP], weights: np.ndarray) -> np.ndarray:
    """`[K + 1, R]`: the difference of AP of every class, and of their mean, in resamples `weights` `[I, R]`."""
    first, second = (
        np.vstack([by_class, mean_over_classes(by_class)]) for by_class in (measure(weights) for measure in measures)
    )
    differences: np.ndarray = second - first
    return differences


def _interval(value: float, resampled: np.ndarray) -> Interval:
    """From the difference on all images and those of the resamples `[R]`, nan in those without an object."""
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(resampled, [2.5, 97.5]).tolist()
    return Interval(value, low, high)


def _gains(first: Matches, second: Matches, num_images: int) -> np.ndarray:
    """See `Comparison.gains`."""
    gains = _detected(second).astype(np.int64) - _detected(first)
    result = np.zeros(num_images, np.int64)
    np.add.at(result, first.object_images, gains)
    return result


def _detected(matches: Matches) -> np.ndarray:
    """bool `[G]`: the objects that a detection matches which scores at least what is best for F1."""
    rows = matches.hits() & (matches.scores >= best_score(matches))
    detected = np.zeros(len(matches.ignore), np.bool_)
    detected[matches.matched[0][rows]] = True
    return detected


def _check_same(first: DetectionStore, second: DetectionStore) -> None:
    """Raises UserError with the first difference of the data that two stores were measured on."""
    difference = _difference_of_classes(first.categories.names, second.categories.names)
    others = {image.image_id: image for image in second.ground_truth}
    ids = {image.image_id for image in first.ground_truth}
    for image in first.ground_truth if difference is None else ():
        other = others.get(image.image_id)
        difference = (
            f"image {image.image_id!r} is only in the first" if other is None else _difference_of_objects(image, other)
        )
        if difference is not None:
            break
    if difference is None:
        added = next((image_id for image_id in others if image_id not in ids), None)
        difference = None if added is None else f"image {added!r} is only in the second"
    if difference is not None:
        raise UserError(
            f"cannot compare two detectors that were measured on other data: {difference}; evaluate both on the same "
            "data set"
        )


def _difference_of_classes(first: tuple[str, ...], second: tuple[str, ...]) -> str | None:
    for label in range(max(len(first), len(second))):
        pair = [names[label] if label < len(names) else None for names in (first, second)]
        if pair[0] != pair[1]:
            texts = ["absent" if name is None else repr(name) for name in pair]
            return f"class {label + 1} is {texts[0]} in the first and {texts[1]} in the second"
    return None


def _difference_of_objects(first: GroundTruth, second: GroundTruth) -> str | None:
    objects1, objects2 = first.objects, second.objects
    where = f"image {first.image_id!r}"
    if len(objects1) != len(objects2):
        return f"{where} has {len(objects1)} objects in the first and {len(objects2)} in the second"
    same = (
        (objects1.labels == objects2.labels)
        & (objects1.ignore == objects2.ignore)
        & (np.abs(objects1.boxes - objects2.boxes) <= SAME_BOX).all(axis=1)
    )
    if not same.all():
        return f"object {int(same.argmin()) + 1} of {where} has another box, class or mark to be ignored in the second"
    return None

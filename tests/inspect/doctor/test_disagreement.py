"""Labels that a detector disagrees with, on detections made by hand."""

import numpy as np
import torch

from detkit.evaluation.store import DetectionStore
from detkit.inspect.doctor.disagreement import LEAST_RIGHT, disagreement_findings, trusted_score
from detkit.inspect.doctor.findings import Finding
from detkit.structures import Categories, Detections, GroundTruth, Objects

CATEGORIES = Categories.of_names(["cat", "dog"])
Row = tuple[list[float], int, float]  # box, label, score


def objects(rows: list[tuple[list[float], int]], ignore: list[bool] | None = None) -> Objects[np.ndarray]:
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    flags = np.array(ignore or [False] * len(rows), np.bool_)
    return Objects(boxes, np.array([label for _, label in rows], np.int64), flags)


def store_of(truths: list[Objects[np.ndarray]], detections: list[list[Row]]) -> DetectionStore:
    """Those images, behind one on which `LEAST_RIGHT` cats are detected as they should."""
    sure = [([20.0 * i, 0.0, 20.0 * i + 15, 15.0], 0) for i in range(LEAST_RIGHT)]
    every = [objects(sure), *truths]
    found: list[list[Row]] = [[(box, label, 0.9) for box, label in sure], *detections]
    ground_truth = [GroundTruth(number, (500, 500), each) for number, each in enumerate(every)]
    store = DetectionStore(CATEGORIES, ground_truth, [f"{number}.jpg" for number in range(len(every))])
    for number, rows in enumerate(found):
        rows = sorted(rows, key=lambda row: -row[2])
        boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([row[1] for row in rows], dtype=torch.int64)
        scores = torch.tensor([row[2] for row in rows], dtype=torch.float32)
        store.update(number, Detections(Objects(boxes, labels, scores=scores), CATEGORIES))
    return store


def findings(store: DetectionStore) -> dict[str, Finding]:
    return {finding.code: finding for finding in disagreement_findings(store)}


CAT_AT = [100.0, 100.0, 150.0, 150.0]
ALONE = [300.0, 300.0, 350.0, 350.0]


def test_a_sure_detection_on_nothing_is_perhaps_an_object() -> None:
    found = findings(store_of([objects([(CAT_AT, 0)])], [[(CAT_AT, 0, 0.95), (ALONE, 1, 0.9), (ALONE, 1, 0.3)]]))
    assert list(found) == ["perhaps-unlabelled"]
    (place,) = found["perhaps-unlabelled"].examples
    assert (place.path, place.box, place.text) == ("1.jpg", tuple(ALONE), "dog 0.90")


def test_a_sure_detection_of_another_class_is_perhaps_a_wrong_label() -> None:
    near = [102.0, 100.0, 150.0, 150.0]
    found = findings(store_of([objects([(CAT_AT, 0)])], [[(near, 1, 0.95), (CAT_AT, 0, 0.2)]]))
    assert list(found) == ["perhaps-mislabelled"]
    (place,) = found["perhaps-mislabelled"].examples
    assert (place.box, place.text) == (tuple(CAT_AT), "dog 0.95, labelled cat")


def test_a_label_that_is_detected_as_surely_is_not_doubted() -> None:
    assert findings(store_of([objects([(CAT_AT, 0)])], [[(CAT_AT, 1, 0.9), (CAT_AT, 0, 0.92)]])) == {}


def test_a_loose_box_and_one_on_an_ignored_object_say_nothing() -> None:
    loose = [130.0, 100.0, 180.0, 150.0]  # IoU .25
    truth = objects([(CAT_AT, 0), (ALONE, 1)], [False, True])
    assert findings(store_of([truth], [[(CAT_AT, 0, 0.95), (loose, 0, 0.9), (ALONE, 0, 0.9)]])) == {}


def test_a_detector_that_is_mostly_wrong_judges_no_label() -> None:
    wrong: list[Row] = [([200.0 + 3 * i, 300.0, 240.0 + 3 * i, 340.0], 1, 0.99) for i in range(40)]
    assert list(findings(store_of([objects([])], [wrong]))) == ["labels-not-judged"]


def test_the_trusted_score_is_the_lowest_at_which_enough_is_right() -> None:
    """38 right ones, then 2 wrong: .95 of 40. One more wrong one, of a lower score, is too many."""
    scores = np.r_[np.linspace(0.99, 0.8, 38), 0.7, 0.7, 0.6]
    right = np.r_[np.ones(38, bool), False, False, False]
    assert trusted_score(scores, right) == 0.7
    assert trusted_score(scores[::-1], right[::-1]) == 0.7
    assert trusted_score(scores, ~right) is None
    assert trusted_score(np.zeros(0), np.zeros(0, bool)) is None


def test_detections_of_equal_scores_are_trusted_together_or_not_at_all() -> None:
    scores, right = np.r_[np.full(20, 0.9), np.full(5, 0.7)], np.r_[np.ones(21, bool), np.zeros(4, bool)]
    assert trusted_score(scores, right) == 0.9


def test_a_few_right_detections_are_not_enough() -> None:
    assert trusted_score(np.full(LEAST_RIGHT - 1, 0.9), np.ones(LEAST_RIGHT - 1, bool)) is None
    assert trusted_score(np.full(LEAST_RIGHT, 0.9), np.ones(LEAST_RIGHT, bool)) == 0.9

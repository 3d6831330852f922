"""The error split: scenes whose costs are derived by hand, data that are mended and measured again, and tidecv.

In scenes with one class of two objects, a recall of 1/2 reaches 51 of the 101 points of recall.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.evaluation import curves
from detkit.evaluation.coco import coco_metrics
from detkit.evaluation.error_split import KINDS, ErrorKind, ErrorSplit, classify_errors, split_errors
from detkit.evaluation.matching import match_detections
from detkit.structures import Detections, GroundTruth
from tests.evaluation.scenes import detected, image, random_scene
from tests.evaluation.test_coco_fast import scene_of_all_sizes
from tests.evaluation.test_matching import published_store

CAT, DOG = 0, 1
A, B, FAR = (0, 0, 50, 50), (100, 0, 150, 50), (500, 500, 550, 550)
B_LOOSE, B_LOOSER = (100, 0, 150, 20), (100, 0, 150, 15)  # IoU with B 0.4 and 0.3


def split_of(images: Sequence[GroundTruth], detections: Sequence[Detections], num_classes: int = 2) -> ErrorSplit:
    matches = match_detections(images, detections)
    return split_errors(matches, classify_errors(matches), num_classes)


def assert_split(split: ErrorSplit, ap: float, counts: dict[str, int], **costs: float) -> None:
    """Counts and costs that are not given are 0."""
    assert split.ap == pytest.approx(ap, abs=1e-12)
    assert split.counts == dict.fromkeys(KINDS, 0) | counts
    actual = dict(split.costs) | {"false_positives": split.false_positives, "false_negatives": split.false_negatives}
    assert actual == pytest.approx(dict.fromkeys(actual, 0.0) | costs, abs=1e-12)


def test_class() -> None:
    """The cats have AP 1, as the wrong one comes last; the dogs 0. Mended: 1. Without the dog no dogs are left."""
    split = split_of([image([A, B], [CAT, DOG])], [detected([A, B], labels=[CAT, CAT])])
    assert_split(split, 1 / 2, {"class": 1}, **{"class": 1 / 2}, false_negatives=1 / 2)


def test_localisation() -> None:
    split = split_of([image([A, B])], [detected([A, B_LOOSE])])
    assert_split(split, 51 / 101, {"localisation": 1}, localisation=50 / 101, false_negatives=50 / 101)


def test_both() -> None:
    """The wrong cat on the dog comes first: AP of the cats 1/2, of the dogs 1."""
    split = split_of([image([A, B], [CAT, DOG])], [detected([B_LOOSE, A, B], labels=[CAT, CAT, DOG])])
    assert_split(split, 3 / 4, {"both": 1}, both=1 / 4, false_positives=1 / 4)


def test_duplicate() -> None:
    """Right, wrong, right: precision 1 up to recall 1/2, then 2/3."""
    split = split_of([image([A, B])], [detected([A, A, B])])
    assert_split(
        split,
        (51 + 50 * 2 / 3) / 101,
        {"duplicate": 1},
        duplicate=50 / 3 / 101,
        false_positives=50 / 3 / 101,
    )


def test_background() -> None:
    split = split_of([image([A])], [detected([FAR, A])])
    assert_split(split, 1 / 2, {"background": 1}, background=1 / 2, false_positives=1 / 2)


def test_missed() -> None:
    split = split_of([image([A, B])], [detected([A])])
    assert_split(split, 51 / 101, {"missed": 1}, missed=50 / 101, false_negatives=50 / 101)


def test_of_two_errors_on_one_object_the_surer_one_mends_and_the_other_goes() -> None:
    """Mended: right, right, and a detection far off that comes last."""
    split = split_of([image([A, B])], [detected([A, B_LOOSE, B_LOOSER, FAR])])
    counts = {"localisation": 2, "background": 1}
    assert_split(split, 51 / 101, counts, localisation=50 / 101, false_negatives=50 / 101)


def test_an_error_on_an_object_that_is_detected_goes() -> None:
    """Wrong, right. The first one cannot be mended into a hit of the object: it has one."""
    split = split_of([image([B])], [detected([B_LOOSE, B])])
    assert_split(split, 1 / 2, {"localisation": 1}, localisation=1 / 2, false_positives=1 / 2)


def test_an_object_is_mended_by_one_kind_only() -> None:
    """As in tidecv: a cat on the dog is surer than a loose dog on it, so that only mending the class detects the dog.

    Mending the box drops the loose dog, which changes nothing as there is no hit.
    """
    split = split_of([image([A, B], [CAT, DOG])], [detected([A, B, B_LOOSE], labels=[CAT, CAT, DOG])])
    assert_split(split, 1 / 2, {"class": 1, "localisation": 1}, **{"class": 1 / 2})


@pytest.mark.parametrize(
    ("box", "label", "kind"),
    [
        ((0, 0, 100, 10), CAT, "localisation"),  # IoU with the cat exactly 0.1
        ((0, 0, 100, 9), CAT, "background"),
        ((0, 0, 100, 10), DOG, "background"),
        ((0, 0, 100, 11), DOG, "both"),
        ((0, 0, 100, 50), DOG, "class"),  # exactly 0.5
        ((0, 0, 100, 49), DOG, "both"),
        ((0, 0, 100, 50), CAT, "localisation"),  # exactly 0.5 with a cat that is detected
        ((0, 0, 100, 51), CAT, "duplicate"),
        ((300, 0, 400, 100), CAT, "class"),  # the dog, and no cat
        ((300, 0, 400, 35), CAT, "both"),
        ((300, 0, 400, 100), DOG, "duplicate"),
        ((420, 0, 520, 100), CAT, "background"),
        ((600, 0, 700, 100), DOG, "class"),  # 1 with a cat, 0.67 with a dog that is detected
        ((860, 0, 960, 100), CAT, "localisation"),  # 0.25 with a cat, 1 with a dog
    ],
)
def test_kinds(box: tuple[int, ...], label: int, kind: ErrorKind) -> None:
    """The order of tidecv at the borders of the paper's ranges, which meet. All objects are detected already."""
    cats = [(0, 0, 100, 100), (600, 0, 700, 100), (800, 0, 900, 100)]
    dogs = [(300, 0, 400, 100), (620, 0, 720, 100), (860, 0, 960, 100)]
    objects, labels = cats + dogs, [CAT] * 3 + [DOG] * 3
    detections = detected([*objects, box], [0.9] * 6 + [0.5], [*labels, label])
    matches = match_detections([image(objects, labels)], [detections])
    errors = classify_errors(matches)
    assert [KINDS[code] for code in errors.kinds if code >= 0] == [kind]


@pytest.mark.parametrize("first", [0, 1])
def test_an_error_is_about_the_object_that_it_overlaps_most(first: int) -> None:
    """IoU 0.38 with one cat and 0.01 with the other, whatever their order. Both are missed."""
    objects = [(90, 0, 190, 100), (0, 0, 100, 100)]
    images = [image(objects if first == 0 else objects[::-1])]
    matches = match_detections(images, [detected([(95, 0, 190, 40)])])
    errors = classify_errors(matches)
    assert [KINDS[code] for code in errors.kinds] == ["localisation"]
    assert errors.targets.tolist() == [first]
    assert errors.iou[0] == pytest.approx(0.38)
    assert errors.mends.tolist() == [True]
    assert np.flatnonzero(errors.missed).tolist() == [1 - first]


def test_a_class_that_is_only_detected_is_not_in_the_mean() -> None:
    """But its detections are errors, and may be mended into hits of other classes."""
    images, detections = [image([A, B])], [detected([A, B, FAR], labels=[CAT, DOG, DOG])]
    counts = {"class": 1, "background": 1}
    assert_split(split_of(images, detections), 51 / 101, counts, **{"class": 50 / 101}, false_negatives=50 / 101)


def test_ignored_objects_are_neither_missed_nor_mended() -> None:
    """The second detection meets the ignored object, the third is loose on it, so that it is background."""
    images = [image([A, B], ignore=[False, True])]
    split = split_of(images, [detected([A, B, (130, 0, 180, 50)], [0.9, 0.8, 0.7])])
    assert_split(split, 1, {"background": 1})


def test_forgetting_all_objects_of_a_class() -> None:
    """It has AP 0 while wrong detections of it remain, and leaves the mean without any."""
    images = [image([A, B], [CAT, DOG])]
    split = split_of(images, [detected([A, FAR], labels=[CAT, DOG])])
    assert_split(split, 1 / 2, {"missed": 1, "background": 1})
    split = split_of(images, [detected([A])])
    assert_split(split, 1 / 2, {"missed": 1}, missed=1 / 2, false_negatives=1 / 2)


@pytest.mark.parametrize(
    ("images", "detections", "counts"),
    [
        ([image()], [detected([A])], {"background": 1}),
        ([image()], [detected()], {}),
        ([image([A], ignore=[True])], [detected([A, FAR])], {"background": 1}),
    ],
    ids=["detections only", "nothing", "only ignored"],
)
def test_without_an_object_that_counts(
    images: list[GroundTruth], detections: list[Detections], counts: dict[str, int]
) -> None:
    split = split_of(images, detections)
    assert split.counts == dict.fromkeys(KINDS, 0) | counts
    assert np.isnan([split.ap, split.false_positives, split.false_negatives, *split.costs.values()]).all()


def test_no_detection() -> None:
    """Every object is forgotten: there is nothing left to measure, and no cost."""
    split = split_of([image([A, B])], [detected()])
    assert split.ap == 0
    assert split.counts == dict.fromkeys(KINDS, 0) | {"missed": 2}
    assert np.isnan([split.costs["missed"], split.false_negatives]).all()
    assert split.false_positives == split.costs["class"] == 0


def mend(
    images: list[GroundTruth], detections: list[Detections], kind: str
) -> tuple[list[GroundTruth], list[Detections]]:
    """The data and the detections themselves with all errors of a kind mended, one row after the other."""
    matches = match_detections(images, detections)
    errors = classify_errors(matches)
    columns = [(d.boxes.tolist(), d.scores.tolist(), d.labels.tolist(), [True] * len(d)) for d in detections]
    for row, (number, place) in enumerate(zip(matches.images, matches.rows, strict=True)):
        boxes, _, labels, stays = columns[number]
        target = errors.targets[row]
        if kind == "false_positives" and errors.kinds[row] >= 0:
            stays[place] = False
        elif errors.kinds[row] >= 0 and KINDS[errors.kinds[row]] == kind:
            stays[place] = bool(errors.mends[row])
            if errors.mends[row]:
                boxes[place] = images[number].objects.boxes[matches.object_rows[target]].tolist()
                labels[place] = int(matches.object_labels[target])
    mended = [
        detected(*([value for value, stay in zip(column, stays, strict=True) if stay] for column in rest), categories)
        for (*rest, stays), categories in zip(columns, [d.categories for d in detections], strict=True)
    ]
    forgotten = {"missed": errors.missed, "false_negatives": matches.undetected()}.get(kind)
    if forgotten is None:
        return images, mended
    remaining = []
    for number, gt in enumerate(images):
        rows = matches.object_rows[forgotten & (matches.object_images == number)]
        objects = gt.objects.take(np.setdiff1d(np.arange(len(gt.objects)), rows))
        remaining.append(GroundTruth(gt.image_id, gt.size, objects))
    return remaining, mended


@pytest.mark.parametrize("seed", range(3))
def test_costs_are_the_ap_of_data_that_are_mended(seed: int) -> None:
    """Measured again from the start, by pycocotools."""
    images, detections = scene_of_all_sizes(np.random.default_rng(seed), 12, 3)
    # A hundred detections of an image and class count, and mending moves some to another class.
    detections = [Detections(d.objects.take(slice(0, 60)), d.categories) for d in detections]
    split = split_of(images, detections, 3)
    ap50 = coco_metrics(images, detections, 3)[0]["AP50"]
    assert split.ap == pytest.approx(ap50, abs=1e-12)
    costs = dict(split.costs) | {"false_positives": split.false_positives, "false_negatives": split.false_negatives}
    for kind, cost in costs.items():
        assert cost == pytest.approx(coco_metrics(*mend(images, detections, kind), 3)[0]["AP50"] - ap50, abs=1e-12), (
            kind
        )
    assert min(cost for kind, cost in costs.items()) > 0


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_that_of_coco_whatever_the_ties(seed: int) -> None:
    images, detections = random_scene(np.random.default_rng(seed), range(40), 3)
    assert split_of(images, detections, 3).ap == pytest.approx(
        coco_metrics(images, detections, 3)[0]["AP50"], abs=1e-12
    )


def test_tidecv_reports_the_same_on_published_results(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the detections of classes that have an object, and with the points of recall of tidecv.

    Origin: tidecv 1.0.1 (pip, MIT), run in November 2026: `TIDE().evaluate(gt, results)` at its own thresholds 0.5 and
    0.1, given the boxes of the two files of cocoapi_val2014_100, crowds as ignored regions, without the 9 results of
    classes that have no object. The scores were replaced by their ranks (by score, image id, place in the file):
    tidecv orders equal scores in another way when it mends. Its numbers are per cent.
    """
    monkeypatch.setattr(curves, "RECALL_POINTS", np.arange(101) / 100)
    store = published_store(shared_data)
    present = np.unique(np.concatenate([gt.objects.labels[~gt.objects.ignore] for gt in store.ground_truth]))
    detections = []
    for d in store.in_order():
        rows = np.isin(d.labels.numpy(), present)
        detections.append(Detections(d.objects.take(torch.from_numpy(rows)), d.categories))
    assert sum(map(len, detections)) == 725

    split = split_of(store.ground_truth, detections, len(store.categories))
    assert split.counts == {
        "class": 74, "localisation": 1, "both": 0, "duplicate": 1, "background": 0, "missed": 106
    }  # fmt: skip
    assert split.ap == pytest.approx(0.6970827357310577, abs=1e-9)
    expected = {
        "class": 0.15572502624814788,
        "localisation": 0.0024988213107025103,
        "both": 0.0,
        "duplicate": 0.00020599225914494923,
        "background": 0.0,
        "missed": 0.10561357418251859,
    }
    assert split.costs == pytest.approx(expected, abs=1e-9)
    assert split.false_positives == pytest.approx(0.07406295026611346, abs=1e-9)
    assert split.false_negatives == pytest.approx(0.19305552355722796, abs=1e-9)

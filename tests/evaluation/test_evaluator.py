import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from detkit.config import ConfigError, parse_config
from detkit.evaluation.evaluator import PROTOCOLS, EvalConfig, Evaluation, Evaluator
from detkit.structures import Detections, GroundTruth
from tests.evaluation.scenes import CLASSES, found, image, random_scene

A, B, C = (0, 0, 50, 50), (100, 0, 150, 50), (200, 0, 250, 50)


def make(*ground_truth: GroundTruth) -> Evaluator:
    return Evaluator(CLASSES, (1, 3), ground_truth)


def test_counts_scores_and_rules() -> None:
    evaluator = make(image([A, B, C], [0, 0, 1], [False, True, False], "first"), image(image_id="second"))
    evaluator.update("second", found())
    evaluator.update("first", found([A, C], labels=[0, 0]))
    evaluation = evaluator.compute(PROTOCOLS)

    assert (evaluation.num_images, evaluation.num_detections, evaluation.num_ignored) == (2, 2, 1)
    assert evaluation.num_objects == {"cat": 1, "dog": 1}
    assert list(evaluation.results) == list(PROTOCOLS)
    for protocol, headline, year in (("voc07", "mAP", "2007"), ("voc10", "mAP", "2010"), ("coco", "AP", "COCO")):
        result = evaluation.results[protocol]
        assert result.headline == headline
        assert result.score == pytest.approx(1 / 2)
        assert result.per_class == pytest.approx({"cat": 1, "dog": 0})
        assert year in result.rules


def test_classes_without_objects_are_left_out_of_the_mean() -> None:
    evaluator = make(image([A]))
    evaluator.update(1, found([A]))
    evaluation = evaluator.compute(PROTOCOLS)
    assert [result.score for result in evaluation.results.values()] == pytest.approx([1, 1, 1])
    assert all(np.isnan(result.per_class["dog"]) for result in evaluation.results.values())


def test_without_any_object_the_score_is_nan() -> None:
    evaluator = make(image())
    evaluator.update(1, found([A]))
    assert all(np.isnan(result.score) for result in evaluator.compute(PROTOCOLS).results.values())


def test_order_of_updates_does_not_matter() -> None:
    images, detections = random_scene(np.random.default_rng(0), range(30), num_classes=3)
    names = detections[0].class_names
    evaluations = []
    for order in (range(30), reversed(range(30))):
        evaluator = Evaluator(names, range(3), images)
        for image_id in order:
            evaluator.update(image_id, detections[image_id])
        evaluations.append(evaluator.compute(PROTOCOLS))
    assert evaluations[0] == evaluations[1]


def test_reset_starts_again() -> None:
    evaluator = make(image([A]))
    for answer, expected in ((found([B]), 0), (found([A]), 1)):
        evaluator.reset()
        evaluator.update(1, answer)
        assert evaluator.compute(["voc10"]).results["voc10"].score == expected


def test_parts_of_several_processes_merge() -> None:
    images, detections = random_scene(np.random.default_rng(1), range(20), num_classes=3)
    names = detections[0].class_names

    def evaluator_of(image_ids: range) -> Evaluator:
        evaluator = Evaluator(names, range(3), images)
        for image_id in image_ids:
            evaluator.update(image_id, detections[image_id])
        return evaluator

    ranks = [evaluator_of(range(rank, 20, 2)) for rank in range(2)]
    states = pickle.loads(pickle.dumps([rank.state() for rank in ranks]))
    whole = evaluator_of(range(20)).compute(PROTOCOLS)
    for rank in ranks:
        rank.merge(states)
        assert rank.compute(PROTOCOLS) == whole
    with pytest.raises(ValueError, match="image 0: its detections were reported before"):
        ranks[0].merge([states[0], states[0]])


def test_refuses_unreported_images() -> None:
    evaluator = make(*(image(image_id=number) for number in range(5)))
    evaluator.update(0, found())
    evaluator.update(2, found())
    with pytest.raises(ValueError, match="3 of 5 images have no detections reported, the first is 1"):
        evaluator.compute(["voc07"])


def _with(**fields: object) -> Detections:
    return replace(found([A]), **fields)


@pytest.mark.parametrize(
    ("image_id", "detections", "message"),
    [
        (9, found(), "image 9: not one of the 1 images"),
        ("1", found(), "image '1': not one of the 1 images"),
        (1, _with(class_names=("dog", "cat")), r"expected detections of the classes \('cat', 'dog'\), got \('dog'"),
        (1, _with(labels=torch.tensor([2])), r"expected labels in \[0, 2\), got 2"),
        (1, _with(labels=torch.tensor([-1])), r"expected labels in \[0, 2\), got -1"),
        (1, _with(scores=torch.tensor([float("nan")])), "expected finite boxes and scores"),
        (1, _with(boxes=torch.full((1, 4), float("inf"))), "expected finite boxes and scores"),
    ],
)
def test_refuses_wrong_detections(image_id: int, detections: Detections, message: str) -> None:
    evaluator = make(image([A]))
    with pytest.raises(ValueError, match=message):
        evaluator.update(image_id, detections)
    assert evaluator.state() == {}


def test_refuses_an_image_twice() -> None:
    evaluator = make(image([A]))
    evaluator.update(1, found([A]))
    with pytest.raises(ValueError, match="image 1: its detections were reported before"):
        evaluator.update(1, found())
    assert len(evaluator.detections[1]) == 1


def test_refuses_wrong_ground_truth() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        make()
    with pytest.raises(ValueError, match="2 images with 1 ids"):
        make(image(), image())
    with pytest.raises(ValueError, match=r"image 1: expected labels in \[0, 2\), got 2"):
        make(image([A], [2]))
    with pytest.raises(ValueError, match="a category id for each"):
        Evaluator(("cat", "dog"), (1,), [image()])
    with pytest.raises(ValueError, match="distinct class names"):
        Evaluator(("cat", "cat"), (1, 2), [image()])


def test_refuses_an_unknown_protocol() -> None:
    evaluator = make(image([A]))
    evaluator.update(1, found())
    with pytest.raises(ValueError, match="protocol 'voc12': expected one of voc07, voc10, coco"):
        evaluator.compute(["voc07", "voc12"])


@pytest.mark.gpu
def test_takes_detections_from_the_gpu() -> None:
    evaluator = make(image([A]))
    evaluator.update(1, found([A]).to("cuda"))
    evaluation: Evaluation = evaluator.compute(["voc07"])
    assert evaluation.results["voc07"].score == pytest.approx(1)


def test_config_names_the_protocol() -> None:
    assert EvalConfig().protocol == "voc07"
    assert parse_config({"protocol": "coco"}, EvalConfig).protocol == "coco"
    with pytest.raises(ConfigError, match=r"voc7.*did you mean 'voc07'"):
        parse_config({"protocol": "voc7"}, EvalConfig)

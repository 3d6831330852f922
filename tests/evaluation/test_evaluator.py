import subprocess
import sys

import numpy as np
import pytest

from detkit.config import ConfigError, UserError, parse_config
from detkit.evaluation.build import build_evaluators, choose_protocols
from detkit.evaluation.coco import COCOEvaluator
from detkit.evaluation.evaluator import Evaluation, summarise
from detkit.evaluation.protocols import MEASURED, PROTOCOLS, EvalConfig, protocols_of
from detkit.evaluation.store import DetectionStore
from detkit.evaluation.voc import VOCEvaluator
from detkit.structures import GroundTruth
from tests.evaluation.scenes import CATEGORIES, categories_of, detected, image, random_mask_scene, random_scene

BOXES = protocols_of([])
A, B, C = (0, 0, 50, 50), (100, 0, 150, 50), (200, 0, 250, 50)


def make_store(*ground_truth: GroundTruth) -> DetectionStore:
    return DetectionStore(CATEGORIES, ground_truth)


def measure(store: DetectionStore) -> Evaluation:
    return summarise(store, build_evaluators(BOXES, store))


def test_counts_scores_and_rules() -> None:
    store = make_store(image([A, B, C], [0, 0, 1], [False, True, False], "first"), image(image_id="second"))
    store.update("second", detected())
    store.update("first", detected([A, C], labels=[0, 0]))
    evaluation = measure(store)

    assert (evaluation.num_images, evaluation.num_detections, evaluation.num_ignored) == (2, 2, 1)
    assert evaluation.num_objects == {"cat": 1, "dog": 1}
    assert list(evaluation.results) == list(BOXES)
    for protocol, headline, year in (("voc07", "mAP", "2007"), ("voc10", "mAP", "2010"), ("coco", "AP", "COCO")):
        result = evaluation.results[protocol]
        assert result.headline == headline
        assert result.score == pytest.approx(1 / 2)
        assert result.per_class == pytest.approx({"cat": 1, "dog": 0})
        assert year in result.rules


def test_classes_without_objects_are_left_out_of_the_mean() -> None:
    store = make_store(image([A]))
    store.update(1, detected([A]))
    evaluation = measure(store)
    assert [result.score for result in evaluation.results.values()] == pytest.approx([1, 1, 1])
    assert all(np.isnan(result.per_class["dog"]) for result in evaluation.results.values())


def test_without_any_object_the_score_is_nan() -> None:
    store = make_store(image())
    store.update(1, detected([A]))
    assert all(np.isnan(result.score) for result in measure(store).results.values())


def test_order_of_updates_does_not_matter() -> None:
    images, detections = random_scene(np.random.default_rng(0), range(30), num_classes=3)
    evaluations = []
    for order in (range(30), reversed(range(30))):
        store = DetectionStore(categories_of(3), images)
        for image_id in order:
            store.update(image_id, detections[image_id])
        evaluations.append(measure(store))
    assert evaluations[0] == evaluations[1]


def test_an_evaluator_measures_what_the_store_holds_at_the_time() -> None:
    store = make_store(image([A]))
    evaluator = VOCEvaluator(store, eleven_point=False)
    for detections, expected in ((detected([B]), 0), (detected([A]), 1)):
        store.reset()
        store.update(1, detections)
        assert evaluator.compute().score == expected


def test_evaluators_refuse_to_leave_images_out() -> None:
    store = make_store(image([A]), image(image_id=2))
    store.update(1, detected([A]))
    for evaluator in build_evaluators(BOXES, store).values():
        with pytest.raises(ValueError, match="1 of 2 images have no detections reported, the first is 2"):
            evaluator.compute()


def test_builder() -> None:
    store = make_store(image([A]))
    evaluators = build_evaluators(("coco", "voc10", "voc07"), store)
    assert list(evaluators) == ["coco", "voc10", "voc07"]
    assert list(map(type, evaluators.values())) == [COCOEvaluator, VOCEvaluator, VOCEvaluator]
    assert all(evaluator.store is store for evaluator in evaluators.values())
    with pytest.raises(
        ValueError, match="protocol 'voc12': expected one of voc07, voc10, coco, coco_segm, coco_keypoints"
    ):
        build_evaluators(["voc07", "voc12"], store)  # type: ignore[list-item]


def test_protocols_measure_boxes_masks_or_keypoints() -> None:
    assert tuple(MEASURED) == PROTOCOLS
    assert protocols_of([]) == ("voc07", "voc10", "coco")
    assert protocols_of(["masks"]) == ("voc07", "voc10", "coco", "coco_segm")
    assert protocols_of(["keypoints", "masks", "tubes"]) == PROTOCOLS


def test_without_a_choice_all_protocols_are_those_that_detector_and_data_serve() -> None:
    store = DetectionStore(categories_of(2), random_mask_scene(np.random.default_rng(0), range(5), 2)[0])
    assert choose_protocols(None, store, ["masks", "keypoints"], "it") == protocols_of(["masks"])
    assert choose_protocols(None, store, ["keypoints"], "it") == BOXES
    assert choose_protocols(["coco_segm", "voc07"], store, ["masks"], "it") == ("coco_segm", "voc07")
    boxes = make_store(image([A]))
    assert choose_protocols(None, boxes, ["masks", "keypoints"], "it") == BOXES


def test_a_protocol_that_detector_or_data_cannot_serve_is_an_error() -> None:
    store = DetectionStore(categories_of(2), random_mask_scene(np.random.default_rng(0), range(5), 2)[0])
    with pytest.raises(
        UserError, match=r"^protocol coco_segm: measures masks, and run gives none; measure its boxes, b"
    ):
        choose_protocols(["coco_segm"], store, ["keypoints"], "run")
    with pytest.raises(
        UserError, match=r"coco_keypoints: measures keypoints, and no object of the validation data has"
    ):
        choose_protocols(["voc07", "coco_keypoints"], store, ["keypoints"], "run")
    nothing = make_store(image([A], ignore=[True]))  # there is nothing to measure by any protocol
    assert choose_protocols(["coco_segm"], nothing, ["masks"], "run") == ("coco_segm",)


def test_config_names_the_protocol() -> None:
    assert EvalConfig().protocol == "voc07"
    assert parse_config({"protocol": "coco"}, EvalConfig).protocol == "coco"
    with pytest.raises(ConfigError, match=r"voc7.*did you mean 'voc07'"):
        parse_config({"protocol": "voc7"}, EvalConfig)


def test_protocol_names_do_not_import_torch() -> None:
    """The command line lists them before it knows whether it will evaluate anything."""
    program = "import sys, detkit.evaluation.protocols; print({'torch', 'numpy'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"
    )

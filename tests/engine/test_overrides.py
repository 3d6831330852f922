"""`--set` on a trained detector: every setting changes the detector that is used, or is refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.config import Config, ConfigError, UserError, to_yaml
from detkit.detectors.build import build_detector
from detkit.detectors.faster_rcnn import FasterRCNNConfig
from detkit.engine.config_files import load_named, packaged_names
from detkit.engine.evaluate import evaluate_source
from detkit.engine.overrides import change_model, check_settings
from detkit.engine.predict import predict
from detkit.engine.sources import load_detector
from detkit.structures import Categories
from detkit.weights import detr, torchvision
from detkit.weights.darknet import DarknetDetectorConfig
from tests.engine.settings import make_config

THRESHOLD = "model.roi.selection.score_threshold"

SELECTION = "score_threshold top_k_per_class top_k_per_level suppression nms_threshold soft_sigma max_detections"
RPN = "pre_nms_top_k_test post_nms_top_k_test nms_threshold score_threshold min_size"
# Written down here from what each setting does: weights have no part in it, and it is read where nothing is trained.
NO_NEW_WEIGHTS = (
    *(f".selection.{field}" for field in SELECTION.split()),
    *(f"model.rpn.{field}" for field in RPN.split()),
    "input.resize.size",
    "input.resize.max_size",
    "head.priors.steps",
    "head.class_threshold",
    "model.windows.largest_scale",
    "model.windows.levels_per_octave",
    "model.test_sizes",
    "model.head.num_boxes",
    "model.head.steps",
    "model.head.renewal_threshold",
    *(f"model.proposals.{field}" for field in ("colour_spaces", "scales", "similarities", "min_side", "max_boxes")),
)


def leaves(config: Config, path: str = "model") -> Iterator[tuple[str, Any]]:
    """The path and the value of every setting."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def other_values(value: Any) -> list[Any]:
    """What a setting might be instead; one at least is valid for most."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value / 2 if isinstance(value, float) else max(1, value // 2), value + 32]
    if isinstance(value, str):
        return ["nms", "soft_linear", "bn", "sigmoid", "softmax", "IMAGENET1K_V1"]
    if value is None:
        return [1, 0.5, "[1]"]
    return ["[]", "[8]", "[hsv]", "[[size]]", "[16, 32]", "[0.5, 0.5]", "[1, 2, 3]", "[1, 1, 1, 1]", "null"]


# ---- every setting of every configuration


@pytest.mark.parametrize("name", packaged_names())
def test_each_setting_of_each_configuration_changes_or_is_refused(name: str) -> None:
    model: Config = load_named(name).model
    changed, refused, messages = set(), set(), []
    for path, value in leaves(model):
        for other in other_values(value):
            try:
                if change_model(model, [f"{path}={other}"], "run") != model:
                    changed.add(path)
                    break
            except ConfigError:  # not a valid value
                continue
            except UserError as error:
                messages.append(str(error))
                refused.add(path)
                break
    assert {path for path in changed if not path.endswith(NO_NEW_WEIGHTS)} == set()
    assert {path for path in refused if path.endswith(NO_NEW_WEIGHTS)} == set()
    always = {path for path, _ in leaves(model) if path.endswith((".max_detections", ".nms_threshold", "resize.size"))}
    assert {path for path in always - changed if dict(leaves(model))[path] is not None} == set()
    assert len(refused) > 10
    assert all("run is trained, and this needs other weights or matters only in" in message for message in messages)


def test_a_changed_setting_is_in_the_detector_that_is_built() -> None:
    changes = {
        "model.rpn.post_nms_top_k_test": 11,
        "model.rpn.nms_threshold": 0.25,
        "model.roi.selection.suppression": "soft_linear",
        "model.roi.selection.max_detections": 3,
        "model.input.resize.size": 32,
    }
    model = change_model(make_config({"name": "shapes"}).model, [f"{k}={v}" for k, v in changes.items()], "run")
    detector: Any = build_detector(model, Categories.of_names(["cat", "dog"]))
    selection = detector.roi.config.selection
    assert (detector.rpn.config.post_nms_top_k_test, detector.rpn.config.nms_threshold) == (11, 0.25)
    assert (selection.suppression, selection.max_detections) == ("soft_linear", 3)
    assert detector.input.place(0, (64, 96)).input_size == (32, 48)
    with torch.no_grad():
        assert len(detector.eval().propose(torch.zeros(1, 3, 32, 64), torch.tensor([[32, 48]])).boxes) == 11


# ---- a run


def scores_of(run: Path, *changes: str) -> dict[Any, list[float]]:
    _, store = evaluate_source(run, ["voc07"], overrides=changes)
    return {image_id: detections.scores.tolist() for image_id, detections in store.detections.items()}


def test_a_threshold_takes_effect_in_eval_and_predict(trained_run: Path) -> None:
    """Suppression is greedy, so a higher threshold gives what is above it of the detections without."""
    plain = scores_of(trained_run)
    every = sorted(score for scores in plain.values() for score in scores)
    threshold = every[len(every) // 2]
    expected = {image_id: [score for score in scores if score > threshold] for image_id, scores in plain.items()}
    assert 0 < sum(map(len, expected.values())) < len(every)
    assert scores_of(trained_run, f"{THRESHOLD}={threshold!r}") == expected
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    (usual,) = predict(load_detector(trained_run)[0], [image])
    (fewer,) = predict(load_detector(trained_run, ["model.roi.selection.max_detections=2"])[0], [image])
    assert fewer.scores.tolist() == usual.scores.tolist()[:2]


def test_the_configuration_that_comes_with_the_detector_has_the_change(trained_run: Path) -> None:
    for overrides, expected in (([f"{THRESHOLD}=0.75"], 0.75), ([], 0.01)):
        config: Any = load_detector(trained_run, overrides)[1]
        assert config.model.roi.selection.score_threshold == expected


def test_with_a_configuration_of_data_the_model_is_still_that_of_the_detector(
    trained_run: Path, tmp_path: Path
) -> None:
    """That of the file is of another detector, which has no `roi`."""
    tree = load_named(trained_run / "config.yaml").model_dump(mode="json")
    file = tmp_path / "data.yaml"
    file.write_text(to_yaml({**tree, "model": {"name": "detr"}}))
    changes = ["model.roi.selection.max_detections=1", "eval.batch_size=1"]
    _, store = evaluate_source(trained_run, ["voc07"], config=file, overrides=changes)
    assert {len(detections) for detections in store.detections.values()} == {1}


def test_the_numbers_say_what_was_changed(trained_run: Path) -> None:
    evaluation, _ = evaluate_source(trained_run, ["voc07"], overrides=[f"{THRESHOLD}=0.5"])
    assert evaluation.notes[0] == f"changed: {THRESHOLD}=0.5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epochs=7", r"--set train.epochs: has no effect here, where nothing is trained; what has is data: "),
        ("eval={protocol: coco}", r"--set eval.protocol: has no effect here"),
        ("augment=[]", r"--set augment: has no effect here"),
        ("augment=ssd", r"--set augment: has no effect here"),
        ("eval.protocol=coco", r"--set eval.protocol: has no effect .* eval: batch_size, coco_backend, amp, max_det"),
        ("loader.draft=true", r"--set loader.draft: has no effect .* loader: workers, proposals"),
        ("loader={workers: 0, draft: true}", r"--set loader.draft: has no effect"),
        ("data.difficult=train", r"--set data.difficult: has no effect"),
        ("loader.proposals=x", r"--set loader.proposals=x: has no effect as this detector is given no proposals"),
        ("eval.max_detections=300", r"--set eval.max_detections=300: has no effect without --protocol coco"),
        ("model.roi.hidden=[16]", r"model.roi.hidden: .* is trained, and this needs other weights .* model.rpn: pre_"),
        ("model.backbone.weights=IMAGENET1K_V1", r"model.backbone.weights: .* is trained"),
        ("model.roi.score_threshold=1", r"score_threshold: unknown key;(.|\n)*model.roi.selection: score_threshold"),
        ("model.name=ssd", r"model.name: 'ssd' is not known"),
        ("train.epoch=1", r"train.epoch: unknown key; did you mean 'epochs'"),
    ],
)
def test_what_has_no_effect_in_eval_is_refused(change: str, message: str, trained_run: Path) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_source(trained_run, ["voc07"], overrides=[change])


def test_where_a_detector_is_only_loaded_nothing_but_its_model_can_change(trained_run: Path) -> None:
    for change in ("eval.batch_size=2", "device=cpu", "data.root=x"):
        with pytest.raises(UserError, match=rf"--set {change}: .* is only loaded, so what can change is model.rpn: "):
            load_detector(trained_run, [change])


def test_what_is_read_can_be_single_settings() -> None:
    settings = make_config({"name": "shapes"})
    check_settings(settings, ["eval.max_detections=200", "data.seed=1"], ["data", "eval.max_detections"])
    with pytest.raises(UserError, match=r"--set eval.batch_size: .* what has is data: .*; eval.max_detections"):
        check_settings(settings, ["eval.batch_size=1"], ["data", "eval.max_detections"])


# ---- public detectors


def test_public_configurations_take_changes_of_their_kind() -> None:
    for model in (*torchvision.CONFIGS.values(), *detr.CONFIGS.values(), DarknetDetectorConfig()):
        limit = next(path for path, _ in leaves(model) if path.endswith("selection.max_detections"))
        assert dict(leaves(change_model(model, [f"{limit}=7"], "public")))[limit] == 7
    with pytest.raises(UserError, match=r"what can change is model.selection: score_threshold"):
        change_model(DarknetDetectorConfig(), ["model.input.resize.size=608"], "yolov3.cfg")


def test_a_change_that_is_none() -> None:
    with pytest.raises(UserError, match=r"--set foo: expected a\.b=value"):
        change_model(FasterRCNNConfig(), ["foo"], "run")

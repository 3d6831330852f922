"""What of the detections a user asked for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.engine.prediction.choice import _selection, build_choice, drop_early, notes_on_choice
from detkit.engine.prediction.settings import PredictionConfig
from detkit.nn.selection import SelectionConfig
from detkit.structures import Categories, Detections, Objects
from tests.detectors.batches import CONFIGS, ROOT, cheap_config, enliven, make_batch
from tests.engine.prediction.drawn import POINTS

CATEGORIES = Categories.of_names(["dog", "motorcycle", "N/A", "traffic light"])


def chosen(scores: list[float], labels: list[int], **settings: object) -> list[tuple[int, float]]:
    """(label, score) of what is chosen."""
    count = len(scores)
    objects = Objects(torch.zeros(count, 4), torch.tensor(labels, dtype=torch.int64), scores=torch.tensor(scores))
    choose = build_choice(PredictionConfig.model_validate(settings), CATEGORIES)
    result = choose(Detections(objects, CATEGORIES))
    return [
        (label, round(score, 3)) for label, score in zip(result.labels.tolist(), result.scores.tolist(), strict=True)
    ]


def test_a_score_that_equals_the_threshold_stays() -> None:
    assert chosen([0.9, 0.7, 0.699], [0, 1, 0], score_threshold=0.7) == [(0, 0.9), (1, 0.7)]


def test_a_class_has_its_own_threshold() -> None:
    settings = {"score_threshold": 0.6, "class_thresholds": {"dog": 0.95, "traffic light": 0.1}}
    assert chosen([0.9, 0.7, 0.5, 0.2], [0, 1, 1, 3], **settings) == [(1, 0.7), (3, 0.2)]


@pytest.mark.parametrize("name", ["motorcycle", "motorbike", "Motor-Cycle"])
def test_classes_by_any_of_their_names(name: str) -> None:
    assert chosen([0.9, 0.8, 0.7], [0, 1, 3], classes=(name, "Traffic_Light")) == [(1, 0.8), (3, 0.7)]


def test_the_best_of_what_was_chosen() -> None:
    assert chosen([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1], classes=("motorcycle",), max_detections=1) == [(1, 0.8)]
    assert chosen([], [], max_detections=1) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("dgo",)}, r"classes: the detector has no class 'dgo'; did you mean 'dog'\?"),
        ({"classes": ("zebra",)}, "no class 'zebra'; known: dog, motorcycle, traffic light"),
        ({"classes": ("N/A",)}, "no class 'N/A'"),
        ({"class_thresholds": {"motocycle": 0.3}}, "class_thresholds: .* did you mean 'motorcycle'"),
        ({"class_thresholds": {"motorbike": 0.3, "motorcycle": 0.4}}, "'motorcycle' is named twice"),
        ({"classes": ("dog",), "class_thresholds": {"motorbike": 0.3}}, "'motorbike' is not among the classes dog"),
    ],
)
def test_names_that_would_have_no_effect(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen([], [], **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"score_threshold": float("nan")},
        {"score_threshold": float("inf")},
        {"score_threshold": -0.1},
        {"score_threshold": 50},
        {"class_thresholds": {"dog": float("nan")}},
        {"class_thresholds": {"dog": 1.5}},
        {"max_detections": 0},
    ],
)
def test_numbers_that_are_no_thresholds(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"greater than|less than|finite"):
        PredictionConfig.model_validate(settings)


class Part(nn.Module):
    """A head, which has its selection in its configuration or beside it."""

    def __init__(self, selection: SelectionConfig, beside: bool) -> None:
        super().__init__()
        holder = self if beside else nn.Module()
        if not beside:
            self.config = holder
        holder.selection = selection


@pytest.mark.parametrize("beside", [True, False])
def test_what_the_detector_drops_itself_is_told(beside: bool) -> None:
    detector = nn.Module()
    detector.roi = Part(SelectionConfig(score_threshold=0.05, max_detections=100), beside)
    settings = PredictionConfig(score_threshold=0.5, class_thresholds={"dog": 0.01}, max_detections=300)
    low, many = notes_on_choice(settings, detector)
    assert "drops what scores 0.05 or less" in low
    assert "--set model.roi.selection.score_threshold=0.01" in low
    assert "at most 100 detections" in many
    assert "--set model.roi.selection.max_detections=300" in many
    assert notes_on_choice(PredictionConfig(score_threshold=0.05, max_detections=100), detector) == []
    assert notes_on_choice(PredictionConfig(max_detections=300, tile=640), detector) == []  # 100 a tile


def test_nothing_is_told_of_what_is_not_known() -> None:
    assert notes_on_choice(PredictionConfig(score_threshold=0.0), nn.Module()) == []


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.parent == ROOT / "configs"], ids=lambda p: p.stem)
def test_dropping_early_changes_no_choice(path: Path) -> None:
    """Whatever the detector, and for a score that equals the threshold too."""
    torch.manual_seed(0)
    categories = replace(Categories.of_names([f"class {i}" for i in range(6)]), keypoints=POINTS)
    detector = build_detector(cheap_config(path).model, categories)
    enliven(detector)
    batch = make_batch(detector.eval(), [3, 2], targets=False)

    def detect() -> list[Detections]:
        with torch.no_grad():
            return detector.postprocess(detector(batch), batch.infos)

    before = detect()
    threshold = float(before[0].scores[len(before[0]) // 2])
    config = PredictionConfig(score_threshold=threshold)
    drop_early(config, detector)
    after, choose = detect(), build_choice(config, detector.categories)
    assert len(choose(before[0])) > 0
    for one, two in zip(before, after, strict=True):
        assert choose(one).boxes.equal(choose(two).boxes)
        assert choose(one).scores.equal(choose(two).scores)
    selection = _selection(detector)[0]
    assert selection is not None
    if selection.suppression == "nms":
        assert selection.score_threshold == pytest.approx(threshold)
        assert len(after[0]) == len(choose(after[0]))

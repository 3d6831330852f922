"""The selection of detections against a slow loop over images and classes, and as an exported program."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.config import UserError
from detkit.detectors.fast_rcnn import FastRoIConfig
from detkit.nn.heads.dab_detr import DABDETRHeadConfig
from detkit.nn.heads.detr import DETRHeadConfig
from detkit.nn.heads.rcnn import RCNNHeadConfig
from detkit.nn.heads.regions import RegionConfig
from detkit.nn.heads.sliding_window import WindowHeadConfig
from detkit.nn.heads.ssd import SSDHeadConfig
from detkit.nn.heads.yolo_v1 import YOLOv1HeadConfig
from detkit.nn.heads.yolo_v2 import YOLOv2HeadConfig
from detkit.nn.heads.yolo_v3 import YOLOv3HeadConfig
from detkit.nn.selection import (
    MIN_SIZE,
    DetectionRows,
    SelectionConfig,
    best_pairs_of_levels,
    images_of_rows,
    scores_of_pairs,
    select_detections,
    to_original,
)
from detkit.structures import Categories, ImageInfo
from tests.reference import nms as reference

CLASSES = 3
WINDOWS = torch.tensor([[0.0, 0, 80, 60], [10, 5, 70, 75], [0, 0, 80, 80]])
Row = tuple[float, list[float], int]  # score, box, label


def make_candidates(counts: list[int], *, box_of_class: bool, tied: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and images of `counts[i]` candidates of image i; some lie beyond their window."""
    generator = torch.Generator().manual_seed(len(counts))
    total = sum(counts)
    shape = (total, CLASSES, 2) if box_of_class else (total, 2)
    corners = torch.rand(shape, generator=generator) * 90 - 10
    boxes = torch.cat([corners, corners + torch.rand(shape, generator=generator) * 40], dim=-1)
    scores = torch.rand(total, CLASSES, generator=generator)
    images = torch.tensor([image for image, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
    return boxes, (scores * 4).round() / 4 if tied else scores, images


def slow_selection(
    boxes: Tensor, scores: Tensor, images: Tensor, windows: Tensor, config: SelectionConfig
) -> list[list[Row]]:
    """As the docstrings of `select_detections` and `SelectionConfig` say, one image, class and candidate at a time."""
    detections = []
    for image, window in enumerate(windows.tolist()):
        rows: list[Row] = []
        for label in range(scores.shape[1]):
            candidates: list[Row] = []
            for index in torch.nonzero(images == image).flatten().tolist():
                score = scores[index, label].item()
                box = (boxes[index] if boxes.ndim == 2 else boxes[index, label]).tolist()
                if score > config.score_threshold:
                    candidates.append((score, clip(box, window), label))
            candidates.sort(key=lambda row: -row[0])  # equal scores stay in their order
            candidates = [row for row in candidates[: config.top_k_per_class] if is_large(row[1])]
            rows += suppress(candidates, config)
        rows.sort(key=lambda row: -row[0])
        detections.append(rows[: config.max_detections])
    return detections


def clip(box: list[float], window: list[float]) -> list[float]:
    return [min(max(value, window[axis]), window[axis + 2]) for value, axis in zip(box, (0, 1, 0, 1), strict=True)]


def is_large(box: list[float]) -> bool:
    return box[2] - box[0] >= MIN_SIZE and box[3] - box[1] >= MIN_SIZE


def suppress(candidates: list[Row], config: SelectionConfig) -> list[Row]:
    """Of one image and class, best first."""
    if config.nms_threshold is None:
        return candidates
    boxes, scores = [row[1] for row in candidates], [row[0] for row in candidates]
    if config.suppression == "merge":
        merged = reference.merge(boxes, scores, config.nms_threshold)
        return [(score, list(box), candidates[0][2]) for box, score in merged]
    return [candidates[index] for index in reference.nms(boxes, scores, config.nms_threshold)]


def assert_same(actual: DetectionRows, expected: list[list[Row]], config: SelectionConfig) -> None:
    limit = config.max_detections
    assert actual.boxes.shape == (len(expected), limit, 4)
    assert actual.scores.shape == actual.labels.shape == (len(expected), limit)
    assert actual.counts.tolist() == [len(rows) for rows in expected]
    for image, rows in enumerate(expected):
        count = len(rows)
        torch.testing.assert_close(actual.scores[image, :count], torch.tensor([row[0] for row in rows]))
        assert all(a >= b for a, b in pairwise(actual.scores[image, :count].tolist()))
        actual_rows = zip(actual.labels[image, :count].tolist(), actual.boxes[image, :count].tolist(), strict=True)
        # Rows of equal score may come in another order.
        by_label_and_box = sorted((label, *box) for label, box in actual_rows)
        expected_rows = sorted((row[2], *row[1]) for row in rows)
        torch.testing.assert_close(torch.tensor(by_label_and_box), torch.tensor(expected_rows), atol=1e-4, rtol=0)
        for column in (actual.boxes, actual.scores, actual.labels):
            assert not column[image, count:].any(), "rows beyond the count are 0"


def test_one_changed_setting_leaves_the_other_defaults_of_a_head() -> None:
    """Or a YAML file that sets one threshold would silently take the rest from another detector."""
    heads = {RegionConfig, RCNNHeadConfig, WindowHeadConfig, FastRoIConfig, SSDHeadConfig, YOLOv1HeadConfig}
    heads |= {YOLOv2HeadConfig, YOLOv3HeadConfig, DETRHeadConfig, DABDETRHeadConfig}
    for head in heads:
        default = head().selection
        changed = head.model_validate({"selection": {"max_detections": 7}}, strict=False).selection
        assert changed == default.model_copy(update={"max_detections": 7}), head.__name__


CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "few": {"max_detections": 4},
    "top_k": {"top_k_per_class": 3, "score_threshold": 0.3},
    "top_k and few": {"top_k_per_class": 2, "nms_threshold": 0.1, "max_detections": 3},
    "no suppression": {"nms_threshold": None},
    "no suppression, top_k": {"nms_threshold": None, "top_k_per_class": 2},
    "merge": {"suppression": "merge", "nms_threshold": 0.3},
    "merge, top_k": {"suppression": "merge", "nms_threshold": 0.3, "top_k_per_class": 4},
}
configs = pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
COUNTS = {"three images": [20, 12, 30], "one without": [15, 0, 9], "all without": [0, 0, 0], "one image": [25]}


@configs
@pytest.mark.parametrize("box_of_class", [False, True])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_selection_equals_a_slow_loop(settings: dict[str, Any], box_of_class: bool, counts: list[int]) -> None:
    config = SelectionConfig(**settings)
    boxes, scores, images = make_candidates(counts, box_of_class=box_of_class)
    windows = WINDOWS[: len(counts)]
    actual = select_detections(boxes, scores, images, windows, config)
    assert_same(actual, slow_selection(boxes, scores, images, windows, config), config)


def test_the_candidates_of_an_image_need_not_stand_together() -> None:
    config = SelectionConfig(top_k_per_class=5, max_detections=6)
    boxes, scores, images = make_candidates([20, 12, 30], box_of_class=False)
    order = torch.randperm(62, generator=torch.Generator().manual_seed(0))
    together = select_detections(boxes, scores, images, WINDOWS, config)
    mixed = select_detections(boxes[order], scores[order], images[order], WINDOWS, config)
    for name in ("boxes", "scores", "labels", "counts"):
        assert torch.equal(getattr(mixed, name), getattr(together, name))


def test_of_equal_scores_the_first_candidates_are_taken() -> None:
    config = SelectionConfig(top_k_per_class=4, nms_threshold=None, score_threshold=0.0)
    boxes, scores, images = make_candidates([40, 30], box_of_class=False, tied=True)
    actual = select_detections(boxes, scores, images, WINDOWS[:2], config)
    assert_same(actual, slow_selection(boxes, scores, images, WINDOWS[:2], config), config)


def test_a_score_equal_to_the_threshold_is_not_above_it() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    scores = torch.tensor([[0.5], [0.0]])
    images = torch.zeros(2, dtype=torch.int64)
    for threshold, count in ((0.5, 0), (0.0, 1), (0.4, 1)):
        config = SelectionConfig(score_threshold=threshold)
        assert select_detections(boxes, scores, images, WINDOWS[:1], config).counts.tolist() == [count]


class Selection(nn.Module):
    def __init__(self, config: SelectionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, boxes: Tensor, scores: Tensor, windows: Tensor) -> DetectionRows:
        """boxes `[B, R, ...]` and scores `[B, R, K]` of the same number of candidates an image."""
        images = images_of_rows(boxes.shape[0], boxes.shape[1], boxes.device)
        return select_detections(boxes.flatten(0, 1), scores.flatten(0, 1), images, windows, self.config)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CONFIGS if "merge" not in name])
@pytest.mark.parametrize("box_of_class", [False, True])
def test_an_exported_selection_does_the_same_for_every_batch_size(name: str, box_of_class: bool) -> None:
    """But for merging, a loop over boxes, which cannot be exported."""
    config = SelectionConfig(**CONFIGS[name])

    def inputs(num_images: int) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, _ = make_candidates([20] * num_images, box_of_class=box_of_class)
        return boxes.unflatten(0, (num_images, 20)), scores.unflatten(0, (num_images, 20)), WINDOWS[:num_images]

    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        Selection(config), inputs(2), dynamic_shapes=({0: batch}, {0: batch}, {0: batch}), strict=False
    )
    program = exported.module()
    for num_images in (1, 2, 3):
        boxes, scores, windows = inputs(num_images)
        images = images_of_rows(num_images, 20, boxes.device)
        expected = slow_selection(boxes.flatten(0, 1), scores.flatten(0, 1), images, windows, config)
        assert_same(program(boxes, scores, windows), expected, config)
        nothing = program(boxes, torch.zeros_like(scores), windows)
        assert_same(nothing, [[] for _ in range(num_images)], config)


def test_what_cannot_be_exported_is_an_error_of_one_line() -> None:
    config = SelectionConfig(suppression="merge")
    boxes, scores, windows = torch.zeros(2, 5, 4), torch.zeros(2, 5, 3), WINDOWS[:2]
    with pytest.raises(UserError, match=r"selection\.suppression: merge is a loop that cannot be exported; nms can be"):
        torch.export.export(Selection(config), (boxes, scores, windows), strict=False)


def slow_pairs(scores: list[Tensor], threshold: float, top_k: int) -> set[tuple[int, int, int, float]]:
    pairs = set()
    for image in range(len(scores[0])):
        start = 0
        for level in scores:
            rows = [
                (score, start + row, label)
                for row, prediction in enumerate(level[image].tolist())
                for label, score in enumerate(prediction)
                if score > threshold
            ]
            pairs |= {(image, row, label, score) for score, row, label in sorted(rows, reverse=True)[:top_k]}
            start += level.shape[1]
    return pairs


@pytest.mark.parametrize(("threshold", "top_k"), [(0.0, 7), (0.75, 7), (0.75, 1000), (0.999, 3), (1.0, 3)])
def test_the_likeliest_pairs_of_each_level(threshold: float, top_k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.rand(2, count, 3, generator=generator) for count in (12, 5, 1)]
    levels[1][1, 2, 0] = 0.75  # which is not above it
    pairs = best_pairs_of_levels(levels, threshold, top_k)
    rows = set(zip(*(column.tolist() for column in pairs), strict=True))
    assert rows == slow_pairs(levels, threshold, top_k)
    assert len(pairs[0]) == len(rows)


def test_a_program_has_as_many_pairs_of_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven of 36, seven of 15 and all three: the threshold is left to `select_detections`."""
    levels = [torch.rand(2, count, 3, generator=torch.Generator().manual_seed(count)) for count in (12, 5, 1)]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    pairs = best_pairs_of_levels(levels, 0.999, 7)
    assert set(zip(*(column.tolist() for column in pairs), strict=True)) == slow_pairs(levels, -1.0, 7)
    assert pairs[0].tolist() == [0] * 17 + [1] * 17


def test_scores_of_pairs() -> None:
    columns = scores_of_pairs(torch.tensor([2, 0]), torch.tensor([0.5, 0.25]), 3)
    assert columns.tolist() == [[0, 0, 0.5], [0.25, 0, 0]]
    assert scores_of_pairs(torch.zeros(0, dtype=torch.int64), torch.zeros(0), 3).shape == (0, 3)


def test_images_of_rows() -> None:
    assert images_of_rows(3, 2, torch.device("cpu")).tolist() == [0, 0, 1, 1, 2, 2]
    assert images_of_rows(2, 0, torch.device("cpu")).shape == (0,)


def test_rows_become_detections_in_original_pixels() -> None:
    """The first picture was halved and lies 10 px from the left; the second has none."""
    rows = DetectionRows(
        boxes=torch.tensor([[[10.0, 0, 30, 20], [8, 5, 70, 50]], [[0, 0, 0, 0], [0, 0, 0, 0]]]),
        scores=torch.tensor([[0.9, 0.8], [0, 0]]),
        labels=torch.tensor([[1, 0], [0, 0]]),
        counts=torch.tensor([2, 0]),
    )
    infos = [ImageInfo("a", (90, 100), (45, 50), (0.5, 0.5), (10, 0)), ImageInfo("b", (45, 50), (45, 50), (1.0, 1.0))]
    categories = Categories.of_names(["cat", "dog"])
    first, second = rows.to_detections(infos, categories)
    assert first.boxes.tolist() == [[0, 0, 40, 40], [0, 10, 100, 90]]
    assert first.scores.tolist() == pytest.approx([0.9, 0.8])
    assert first.labels.tolist() == [1, 0]
    assert first.categories is categories
    assert len(second) == 0
    assert to_original(torch.zeros(0, 4), infos[0]).shape == (0, 4)

"""What holds for all boxes, whatever they are: overlaps, suppression, and the codings of boxes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.ops.coders import BoxCoder, SideCoder
from detkit.ops.iou import (
    box_iof,
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
    scylla_box_iou,
)
from detkit.ops.nms import class_aware_nms, diou_nms, nms, soft_nms

few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
RANGES: dict[Any, tuple[float, float]] = {
    box_iou: (0, 1),
    generalized_box_iou: (-1, 1),
    distance_box_iou: (-1, 1),
    complete_box_iou: (-2, 1),
    scylla_box_iou: (-1, 1),
}
EVERY = pytest.mark.parametrize("overlap", RANGES, ids=lambda function: function.__name__)


@st.composite
def boxes(draw: st.DrawFn, at_least: int = 0) -> Tensor:
    """float64 `[N, 4]` with corners in quarters of pixels, so that equal boxes and shared edges abound."""
    rows = st.tuples(*[st.integers(-80, 80)] * 2, *[st.integers(1, 60)] * 2)
    values = torch.tensor(draw(st.lists(rows, min_size=at_least, max_size=12)), dtype=torch.float64).reshape(-1, 4) / 4
    return torch.cat((values[:, :2], values[:, :2] + values[:, 2:]), dim=1)


@EVERY
@few
@given(first=boxes(), second=boxes())
def test_overlaps_are_symmetric_and_bounded(overlap: Any, first: Tensor, second: Tensor) -> None:
    values, (low, high) = overlap(first, second), RANGES[overlap]
    torch.testing.assert_close(values, overlap(second, first).T)
    assert bool(((values >= low - 1e-9) & (values <= high + 1e-9)).all())


@EVERY
@few
@given(first=boxes(at_least=1))
def test_a_box_overlaps_itself_most(overlap: Any, first: Tensor) -> None:
    values = overlap(first, first)
    torch.testing.assert_close(values.diagonal(), torch.ones(len(first), dtype=torch.float64))
    assert bool((values <= values.diagonal()[:, None] + 1e-9).all())


@EVERY
@few
@given(first=boxes(), second=boxes(), move=st.tuples(*[st.integers(-99, 99)] * 2), scale=st.sampled_from([0.5, 2, 8]))
def test_overlaps_know_no_origin_and_no_unit(
    overlap: Any, first: Tensor, second: Tensor, move: tuple[int, int], scale: float
) -> None:
    shift = torch.tensor(move * 2)
    moved = overlap(first * scale + shift, second * scale + shift)
    torch.testing.assert_close(moved, overlap(first, second), rtol=0, atol=1e-9)


@few
@given(first=boxes(), second=boxes())
def test_overlaps_are_in_order(first: Tensor, second: Tensor) -> None:
    """A generalisation is at most the IoU; the part of a box is at least that of the union."""
    iou = box_iou(first, second)
    for smaller in (generalized_box_iou, distance_box_iou, complete_box_iou):
        assert bool((smaller(first, second) <= iou + 1e-9).all())
    assert bool((box_iof(first, second) >= iou - 1e-9).all())


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes with scores of a few values, so that there are ties, and labels."""
    drawn = draw(boxes())
    scores = draw(st.lists(st.integers(1, 8), min_size=len(drawn), max_size=len(drawn)))
    labels = draw(st.lists(st.integers(0, 2), min_size=len(drawn), max_size=len(drawn)))
    return drawn, torch.tensor(scores, dtype=torch.float64) / 8, torch.tensor(labels, dtype=torch.int64)


@pytest.mark.parametrize("suppress", [class_aware_nms, diou_nms], ids=["iou", "diou"])
@few
@given(scene=scenes(), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_suppression_keeps_a_set_that_it_keeps_again(
    suppress: Any, scene: tuple[Tensor, Tensor, Tensor], threshold: float
) -> None:
    drawn, scores, labels = scene
    kept = suppress(drawn, scores, labels, threshold)
    assert len(set(kept.tolist())) == len(kept) <= len(drawn)
    assert bool((scores[kept].diff() <= 0).all()), "best score first"
    again = suppress(drawn[kept], scores[kept], labels[kept], threshold)
    assert again.tolist() == list(range(len(kept)))
    assert set(labels[kept].tolist()) == set(labels.tolist()), "the best of each class stays"


@few
@given(scene=scenes(), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_what_goes_lies_on_something_better(scene: tuple[Tensor, Tensor, Tensor], threshold: float) -> None:
    drawn, scores, _ = scene
    kept = nms(drawn, scores, threshold)
    overlaps = box_iou(drawn, drawn)
    for box in set(range(len(drawn))) - set(kept.tolist()):
        assert any(overlaps[box, other] > threshold and scores[other] >= scores[box] for other in kept.tolist())
    for place, box in enumerate(kept.tolist()):
        assert bool((overlaps[box, kept[:place]] <= threshold).all())


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@few
@given(scene=scenes())
def test_soft_suppression_only_lowers_scores(method: Any, scene: tuple[Tensor, Tensor, Tensor]) -> None:
    drawn, scores, labels = scene
    kept, lowered = soft_nms(drawn, scores, labels, method=method, sigma=0.5, iou_threshold=0.3, score_threshold=0.01)
    assert len(set(kept.tolist())) == len(kept)
    assert bool((lowered <= scores[kept] + 1e-9).all())
    assert bool((lowered.diff() <= 1e-9).all())


@few
@given(pairs=boxes(at_least=2), weights=st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]))
def test_codings_are_inverse(pairs: Tensor, weights: tuple[float, float, float, float]) -> None:
    half = len(pairs) // 2
    drawn, anchors = pairs[:half], pairs[half : 2 * half]
    coder = BoxCoder(weights)
    torch.testing.assert_close(coder.decode(coder.encode(drawn, anchors), anchors), drawn)
    deltas = (drawn - anchors) / 40
    torch.testing.assert_close(coder.encode(coder.decode(deltas, anchors), anchors), deltas)
    sides = (anchors[:, 2:] - anchors[:, :2]).amax(dim=1, keepdim=True)
    squares = torch.cat((anchors[:, :2], anchors[:, :2] + sides), dim=1)
    torch.testing.assert_close(SideCoder().decode(SideCoder().encode(drawn, squares), squares), drawn)

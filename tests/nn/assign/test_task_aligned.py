"""Task-aligned assignment by hand, and against the slow reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.nn.assign.assignment import Assignment
from detkit.nn.assign.task_aligned import (
    QualityAssignment,
    TaskAlignedAssigner,
    TaskAlignedConfig,
    quality_of_overlap,
)
from detkit.structures import Objects, Target
from tests.nn.heads.support import make_target
from tests.reference import task_aligned as reference

ROW = torch.tensor([[4.0 + 8 * i, 4.0] for i in range(6)])  # the middles of six cells of 8 px beside each other
CELLS = torch.cat([ROW - 4, ROW + 4], dim=1)
OBJECT = (8.0, 0.0, 32.0, 8.0)  # the points 1, 2 and 3 lie in it


def assigned(
    target: Target, boxes: Tensor = CELLS, scores: Any = None, iof: float | None = None, **fields: Any
) -> QualityAssignment:
    """With scores of one half unless given."""
    classes = torch.full((6, 3), 0.5) if scores is None else scores
    return TaskAlignedAssigner(TaskAlignedConfig(**fields), iof).assign(ROW, boxes, classes, target)


def graded() -> tuple[Tensor, Tensor]:
    """Predictions 1, 2 and 3 have IoU 1, 1/2 and 3/4 with the object, and scores of 1/4, 4/5 and 1/2 for class 1."""
    boxes = CELLS.clone()
    boxes[1:4] = torch.tensor([OBJECT, (8.0, 0.0, 20.0, 8.0), (8.0, 0.0, 26.0, 8.0)])
    scores = torch.zeros(6, 3)
    scores[1:4, 1] = torch.tensor([0.25, 0.8, 0.5])
    return boxes, scores


def test_the_metric_weighs_score_and_overlap() -> None:
    """With squared IoUs the metrics are .25, .2 and .28125. The best learns the highest IoU of the object's
    predictions, which is not its own; the others in proportion."""
    boxes, scores = graded()
    assignment = assigned(make_target([OBJECT], [1]), boxes, scores, iou_power=2, top_k=2)
    assert assignment.index.tolist() == [-1, 0, -1, 0, -1, -1]
    expected = torch.tensor([0, 0.25 / 0.28125, 0, 1, 0, 0])
    torch.testing.assert_close(assignment.quality, expected)
    by_score = assigned(make_target([OBJECT], [1]), boxes, scores, iou_power=0, top_k=1)
    assert by_score.index.tolist() == [-1, -1, 0, -1, -1, -1]
    torch.testing.assert_close(by_score.quality[2].item(), 0.5)
    assert assigned(make_target([OBJECT], [1]), boxes, scores, top_k=1).index.tolist() == [-1, 0, -1, -1, -1, -1]


def test_points_outside_do_not_answer_however_well_they_predict() -> None:
    boxes = torch.tensor([OBJECT] * 6)
    assert assigned(make_target([OBJECT]), boxes).index.tolist() == [-1, 0, 0, 0, -1, -1]
    border = make_target([(12.0, 0.0, 28.0, 8.0)])  # through the points 1 and 3
    assert assigned(border, boxes).index.tolist() == [-1, -1, 0, -1, -1, -1]


def test_a_prediction_that_does_not_overlap_is_background() -> None:
    boxes = CELLS + torch.tensor([100.0, 0.0, 100.0, 0.0])
    boxes[2] = CELLS[2]
    assert assigned(make_target([OBJECT]), boxes).index.tolist() == [-1, -1, 0, -1, -1, -1]
    assert not assigned(make_target([OBJECT]), scores=torch.zeros(6, 3)).positive.any()


def test_taken_twice_it_answers_for_the_object_of_the_highest_overlap() -> None:
    """Point 2 lies in the first two objects; its box is nearest to the second, or to the third, around point 5."""
    objects = [OBJECT, (16.0, 0.0, 32.0, 8.0), (40.0, 0.0, 48.0, 8.0)]
    boxes = CELLS.clone()
    boxes[2] = torch.tensor([14.0, 0.0, 32.0, 8.0])
    assert assigned(make_target(objects), boxes).index.tolist()[2] == 1
    boxes[2] = torch.tensor([30.0, 0.0, 48.0, 8.0])
    assert assigned(make_target(objects), boxes).index.tolist()[2] == 2


def test_without_objects_and_without_points_in_them() -> None:
    for target in (make_target([]), make_target([(0, 100, 8, 108)])):
        assignment = assigned(target)
        assert not assignment.positive.any()
        assert assignment.weight.tolist() == [1] * 6
        assert assignment.quality.tolist() == [0] * 6


def test_background_inside_an_ignored_object_can_be_neutral() -> None:
    target = make_target([(8, 0, 16, 8), (32, 0, 48, 8)], ignore=[False, True])
    assert assigned(target).weight.tolist() == [1] * 6
    assert assigned(target, iof=0.5).weight.tolist() == [1, 1, 1, 1, 0, 0]


def test_the_quality_of_another_assignment_is_the_overlap() -> None:
    assignment = Assignment(torch.tensor([-1, 1, 0, -1, -1, -1]), torch.ones(6))
    target = make_target([(0, 0, 1, 1), OBJECT, (16.0, 0.0, 20.0, 8.0)], ignore=[True, False, False])
    quality = quality_of_overlap(assignment, CELLS, target).quality
    torch.testing.assert_close(quality, torch.tensor([0, 0, 1 / 3, 0, 0, 0]))  # point 1 and the third do not overlap


@pytest.mark.parametrize("seed", range(6))
def test_against_the_slow_reference(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    fine, coarse = (
        torch.cartesian_prod(torch.arange(64 // s), torch.arange(64 // s)).flip(1) * s + s / 2 for s in (8, 16)
    )
    points = torch.cat([fine, coarse]).float()
    strides = torch.cat([torch.full((len(fine), 1), 8.0), torch.full((len(coarse), 1), 16.0)])
    count = [0, 1, 4, 9, 2, 5][seed]
    sides = 4 + torch.rand(count, 2, generator=generator) * 56
    corner = torch.rand(count, 2, generator=generator) * (64 - sides)
    objects = torch.cat([corner, corner + sides], dim=1)
    labels = torch.randint(3, (count,), generator=generator)
    noise = torch.randn(len(points), 4, generator=generator) * 4
    boxes = torch.cat([points - 2 * strides, points + 2 * strides], dim=1) + noise
    scores = torch.rand(len(points), 3, generator=generator)
    assigner = TaskAlignedAssigner(TaskAlignedConfig(top_k=5))
    result = assigner.assign(points, boxes, scores, Target(Objects(objects, labels)))
    expected = reference.assign(
        *(tensor.tolist() for tensor in (points, boxes, scores)),
        list(zip(objects.tolist(), labels.tolist(), strict=True)),
        top_k=5,
    )
    assert result.index.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(result.quality, torch.tensor([quality for _, quality in expected]))

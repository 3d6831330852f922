"""SimOTA by hand, and against the slow reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.nn.assign.sim_ota import SimOTAAssigner, SimOTAAssignment, SimOTAConfig
from detkit.structures import Objects, Target
from tests.nn.heads.support import make_target
from tests.reference import sim_ota as reference

ROW = torch.tensor([[4.0 + 8 * i, 4.0] for i in range(6)])  # the middles of six cells of 8 px beside each other
STRIDE = torch.full((6, 1), 8.0)
AROUND = torch.cat([ROW - 4, ROW + 4], dim=1)  # each predicts its own cell


def assigned(target: Target, boxes: Tensor = AROUND, classes: Any = None, **fields: Any) -> SimOTAAssignment:
    """With logits that say nothing unless given."""
    logits = torch.zeros(6, 3) if classes is None else torch.tensor(classes)
    return SimOTAAssigner(SimOTAConfig(**fields)).assign(ROW, STRIDE, boxes, logits, torch.zeros(6), target)


def test_the_number_of_positives_is_the_sum_of_the_best_overlaps() -> None:
    """Three of the predictions near the centre are the object itself: 3 of IoU 1, and the fourth does not count."""
    target = make_target([(8, 0, 32, 8)])
    boxes = torch.tensor([(8.0, 0.0, 32.0, 8.0)] * 6)
    assert assigned(target, boxes).index.tolist() == [-1, 0, 0, 0, -1, -1]
    halves = torch.tensor([(8.0, 0.0, 20.0, 8.0)] * 6)  # IoU .5 each: 1.5, rounded down
    assert assigned(target, halves).positive.sum() == 1
    assert assigned(target, boxes, top_k=2).positive.sum() == 2


def test_one_answers_even_if_none_overlaps() -> None:
    away = AROUND + 100
    assignment = assigned(make_target([(8, 0, 16, 8)]), away)
    assert assignment.positive.sum() == 1
    assert assignment.iou.tolist() == [0] * 6


def test_cells_in_the_box_are_candidates_of_the_paper() -> None:
    """The centre is at 24: the middles of the outer cells are 20 px away, 2.5 cells, so that they are not near it."""
    target, boxes = make_target([(0, 0, 48, 8)]), torch.tensor([(0.0, 0.0, 48.0, 8.0)] * 6)
    assert assigned(target, boxes, center_radius=2.5).index.tolist() == [-1, 0, 0, 0, 0, -1]
    assert assigned(target, boxes, candidates="box", center_radius=2.5).index.tolist() == [0] * 6


def test_of_equal_boxes_that_with_the_better_class_is_cheaper() -> None:
    target = make_target([(8, 0, 24, 8)], labels=[2])  # the centre is between cells 1 and 2
    boxes = torch.tensor([(8.0, 0.0, 24.0, 8.0)] * 6)
    classes = [[0.0, 0.0, 0.0]] * 6
    classes[2] = [0.0, 0.0, 4.0]
    assert assigned(target, boxes, classes, top_k=1).index.tolist() == [-1, -1, 0, -1, -1, -1]


def test_two_objects_on_one_prediction() -> None:
    """Both claim the only cell near both; the one that its box fits has the lower cost."""
    target = make_target([(8, 0, 16, 8), (8, 0, 17, 9)])
    boxes = AROUND.clone()
    boxes[1] = torch.tensor([8.0, 0.0, 17.0, 9.0])
    assert assigned(target, boxes, center_radius=0.6).index.tolist() == [-1, 1, -1, -1, -1, -1]


def test_no_object_and_no_candidate() -> None:
    for target in (make_target([]), make_target([(0, 100, 8, 108)])):
        assignment = assigned(target)
        assert not assignment.positive.any()
        assert assignment.weight.tolist() == [1] * 6


def test_background_inside_an_ignored_object_can_be_neutral() -> None:
    target = make_target([(8, 0, 16, 8), (32, 0, 48, 8)], ignore=[False, True])
    assert assigned(target).weight.tolist() == [1] * 6
    logits, objectness = torch.zeros(6, 3), torch.zeros(6)
    spared = SimOTAAssigner(SimOTAConfig(), 0.5).assign(ROW, STRIDE, AROUND, logits, objectness, target)
    assert spared.weight.tolist() == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(("rule", "radius"), [("center", 1.5), ("box", 2.5)])
@pytest.mark.parametrize("seed", range(6))
def test_against_the_slow_reference(seed: int, rule: Any, radius: float) -> None:
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
    noise = torch.randn(len(points), 4, generator=generator) * 2
    boxes = torch.cat([points - strides, points + strides], dim=1) + noise
    classes, objectness = (
        torch.randn(len(points), 3, generator=generator),
        torch.randn(len(points), generator=generator),
    )
    assigner = SimOTAAssigner(SimOTAConfig(candidates=rule, center_radius=radius))
    result = assigner.assign(points, strides, boxes, classes, objectness, Target(Objects(objects, labels)))
    expected = reference.assign(
        *(tensor.tolist() for tensor in (points, strides[:, 0], boxes, classes, objectness)),
        list(zip(objects.tolist(), labels.tolist(), strict=True)),
        radius=radius,
        rule=rule,
    )
    assert result.index.tolist() == expected
    assert bool((result.iou > 0).le(result.positive).all())

"""Adaptive assignment by hand, and against the slow reference."""

import torch

from detkit.nn.assign.assignment import BACKGROUND
from detkit.nn.assign.atss import ATSSAssigner, ATSSAssignerConfig
from tests.nn.heads.support import make_target
from tests.reference import assign as reference
from tests.reference.iou import Box

ROW = [(10.0 * i, 0.0, 10.0 * i + 10, 10.0) for i in range(6)]


def assigned(
    levels: list[list[Box]], objects: list[Box], config: ATSSAssignerConfig, **fields: float
) -> tuple[list[int], list[float]]:
    boxes = torch.tensor([box for level in levels for box in level]).view(-1, 4)
    assigner = ATSSAssigner(config, [len(level) for level in levels], **fields)
    assignment = assigner.assign(boxes, make_target(objects))
    return assignment.index.tolist(), assignment.weight.tolist()


def test_the_threshold_is_the_mean_and_the_standard_deviation() -> None:
    """The object is the second box moved by 2: IoU 8 / 12, 2 / 18 with the third, 0 with the first.

    Mean .259, deviation .357 (of three less one): .617 is below 8 / 12. The deviation of three would be .292.
    """
    assert assigned([ROW], [(12, 0, 22, 10)], ATSSAssignerConfig(top_k=3))[0] == [-1, 0, -1, -1, -1, -1]


def test_the_standard_deviation_is_that_of_a_sample() -> None:
    """Overlaps 1, 0.6 and 0: mean .533 and deviation .503 give 1.036, above both; divided by three, .944 below 1."""
    level = [(0.0, 0.0, 10.0, 10.0), (0.0, 2.0, 10.0, 8.0), (9.0, -30.0, 29.0, -20.0)]
    assert assigned([level], [(0, 0, 10, 10)], ATSSAssignerConfig(top_k=3))[0] == [-1, -1, -1]


def test_a_positive_has_its_centre_inside() -> None:
    """Of one candidate the threshold is its own IoU; the object lies beside the centre of the box."""
    assert assigned([ROW[:1]], [(0, 0, 4, 10)], ATSSAssignerConfig())[0] == [BACKGROUND]
    assert assigned([ROW[:1]], [(0, 0, 6, 10)], ATSSAssignerConfig())[0] == [0]


def test_each_level_gives_its_nearest_and_a_small_one_all_it_has() -> None:
    """The box of the coarser level is the object: IoU 1 beside .25 and .25, mean .5 and deviation .43, below 1."""
    fine = [(0.0, 0.0, 10.0, 10.0), (10.0, 0.0, 20.0, 10.0), (90.0, 90.0, 100.0, 100.0)]
    levels = [fine, [(0.0, 0.0, 20.0, 20.0)]]
    assert assigned(levels, [(0, 0, 20, 20)], ATSSAssignerConfig(top_k=2))[0] == [-1, -1, -1, 0]


def test_of_two_objects_an_anchor_takes_the_one_it_overlaps_more() -> None:
    objects: list[Box] = [(11, 0, 21, 10), (10, 0, 20, 10), (9, 0, 19, 10)]
    assert assigned([ROW], objects, ATSSAssignerConfig(top_k=3))[0][1] == 1


def test_points_become_anchors() -> None:
    """Squares of 2 px around the centres of 10 px boxes, five times as large, are those boxes.

    The second box is the first object (IoU 1 and .4), but its square would be a tenth of the second (.04 and .1).
    """
    points = [(10.0 * i + 4, 4.0, 10.0 * i + 6, 6.0) for i in range(6)]
    objects: list[Box] = [(10, 0, 20, 10), (13, 0, 17, 10)]
    expected = assigned([ROW], objects, ATSSAssignerConfig(top_k=3))
    assert assigned([points], objects, ATSSAssignerConfig(top_k=3, enlarge=5)) == expected
    assert expected[0][1] == 0
    assert assigned([points], objects, ATSSAssignerConfig(top_k=3))[0][1] == 1


def test_without_objects_and_without_anchors() -> None:
    assert assigned([ROW], [], ATSSAssignerConfig()) == ([BACKGROUND] * 6, [1.0] * 6)
    assert assigned([[]], [(0, 0, 1, 1)], ATSSAssignerConfig()) == ([], [])


def test_background_inside_an_ignored_object_may_be_neutral() -> None:
    target = make_target([(12, 0, 22, 10), (40, 0, 60, 10)], ignore=[False, True])
    assignment = ATSSAssigner(ATSSAssignerConfig(top_k=3), [6], ignored_iof=0.9).assign(torch.tensor(ROW), target)
    assert assignment.index.tolist() == [-1, 0, -1, -1, -1, -1]
    assert assignment.weight.tolist() == [1, 1, 1, 1, 0, 0]


def test_it_equals_the_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    positives = 0
    for _ in range(30):
        # scattered anchors: no two are equally near to a centre
        levels = []
        for side in (12, 24, 48):
            corners = torch.rand((64 // side) ** 2 * 2, 2, generator=generator) * (64 - side)
            levels.append([(x, y, x + side, y + side) for x, y in corners.tolist()])
        corners, sides = torch.rand(5, 2, generator=generator) * 40, torch.rand(5, 2, generator=generator) * 30 + 5
        objects: list[Box] = [tuple(box) for box in torch.cat([corners, corners + sides], dim=1).tolist()]  # type: ignore[misc]
        actual, _ = assigned(levels, objects, ATSSAssignerConfig(top_k=4))
        expected = reference.atss(levels, objects, 4)
        assert actual == expected
        positives += sum(index >= 0 for index in expected)
    assert positives > 50

"""FCOS's points on cases whose distances one can see, and against the slow reference."""

import pytest
import torch
from pydantic import ValidationError

from detkit.nn.assign.assignment import BACKGROUND
from detkit.nn.assign.points import PointAssigner, PointAssignerConfig, centerness, distances_to_sides
from tests.nn.heads.support import make_target
from tests.reference import assign as reference

ROW = torch.tensor([[8.0 * i - 4, -4.0, 8.0 * i + 4, 4.0] for i in range(8)])  # squares of 8 px: points at 0, 8, .., 56
LEVELS = [
    [(x - s / 2, y - s / 2, x + s / 2, y + s / 2) for y in range(0, 64, s) for x in range(0, 64, s)]
    for s in (8, 16, 32)
]


def assigned(config: PointAssignerConfig, objects: list[tuple[float, float, float, float]]) -> list[int]:
    return PointAssigner(config, [len(ROW)]).assign(ROW, make_target(objects)).index.tolist()


def test_points_near_the_centre_answer_for_an_object() -> None:
    """Its centre is at 30, and 1.5 strides are 12 px: 18 to 42."""
    assert assigned(PointAssignerConfig(), [(2, -9, 58, 9)]) == [-1, -1, -1, 0, 0, 0, -1, -1]


def test_without_a_radius_all_points_inside_do_and_none_on_the_border() -> None:
    inside = PointAssignerConfig(center_radius=None)
    assert assigned(inside, [(2, -9, 58, 9)]) == [-1, 0, 0, 0, 0, 0, 0, 0]
    assert assigned(inside, [(8, -9, 24, 9)]) == [-1, -1, 0, -1, -1, -1, -1, -1]
    assert assigned(inside, [(2, 0, 58, 9)]) == [-1] * 8


def test_of_several_objects_the_smallest_counts() -> None:
    objects = [(2.0, -9.0, 58.0, 9.0), (20.0, -6.0, 44.0, 6.0)]
    assert assigned(PointAssignerConfig(center_radius=None), objects) == [-1, 0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("half", "level"),
    [(31.0, 0), (63.0, 0), (64.0, None), (65.0, 1), (127.0, 1), (128.0, None), (129.0, 2), (900.0, 2)],
)
def test_the_level_is_that_of_the_largest_distance(half: float, level: int | None) -> None:
    """Strides 8, 16 and 32, one point each, at 0: below 64 px, 64 to 128, above 128. Limits belong to no level."""
    boxes = torch.tensor([[-s / 2, -s / 2, s / 2, s / 2] for s in (8.0, 16.0, 32.0)])
    target = make_target([(-half, -5, half, 5)])
    index = PointAssigner(PointAssignerConfig(), [1, 1, 1]).assign(boxes, target).index
    assert index.tolist() == [0 if number == level else BACKGROUND for number in range(3)]


@pytest.mark.parametrize("radius", [1.5, None])
def test_it_equals_the_slow_reference(radius: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    config = PointAssignerConfig(center_radius=radius, distances=(1.0, 2.0))
    boxes, positives = torch.tensor([box for level in LEVELS for box in level]).float(), 0
    for _ in range(30):
        corners = torch.randint(0, 48, (6, 2), generator=generator)
        sides = torch.randint(3, 40, (6, 2), generator=generator)
        objects = torch.cat([corners, corners + sides], dim=1).float()
        expected = reference.fcos(LEVELS, [tuple(box) for box in objects.tolist()], radius, (1.0, 2.0))
        actual = PointAssigner(config, [len(level) for level in LEVELS]).assign(boxes, make_target(objects.tolist()))
        assert actual.index.tolist() == expected
        positives += sum(index >= 0 for index in expected)
    assert positives > 100


def test_ignored_objects_are_background_or_neutral() -> None:
    target = make_target([(-5, -5, 12, 5)], ignore=[True])
    for ignored_iof, expected in ((None, [1] * 8), (0.9, [0, 0, 1, 1, 1, 1, 1, 1])):
        assignment = PointAssigner(PointAssignerConfig(), [8], ignored_iof).assign(ROW, target)
        assert assignment.index.tolist() == [BACKGROUND] * 8
        assert assignment.weight.tolist() == expected


def test_limits_in_order() -> None:
    with pytest.raises(ValidationError, match="distances: expected a smaller and a larger number, found"):
        PointAssignerConfig(distances=(8.0, 4.0))


def test_centre_ness_by_hand() -> None:
    """Equation 3: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))."""
    box = torch.tensor([0.0, 0.0, 40.0, 20.0])
    points = torch.tensor([[20.0, 10.0], [10.0, 10.0], [8.0, 4.0], [0.0, 10.0]])
    expected = [1.0, (10 / 30) ** 0.5, (8 / 32 * 4 / 16) ** 0.5, 0.0]
    assert centerness(points, box.expand(4, 4)).tolist() == pytest.approx(expected)
    assert distances_to_sides(points[2], box).tolist() == [8, 4, 32, 16]
    assert centerness(points[:0], torch.zeros(0, 4)).shape == (0,)

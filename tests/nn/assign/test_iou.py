"""Matching by overlap, on cases whose overlaps are fractions one can see."""

import pytest
import torch

from detkit.nn.assign.assignment import BACKGROUND, Assignment, sample
from detkit.nn.assign.iou import BETWEEN, BipartiteAssigner, IoUAssigner, match_bipartite, match_by_iou
from detkit.ops.iou import box_iou
from detkit.structures import Objects, Target

OBJECT = (0.0, 0.0, 10.0, 10.0)


def strip(width: float, x: float = 0.0) -> tuple[float, float, float, float]:
    """A box of the object's height; inside OBJECT its IoU is width / 10."""
    return x, 0.0, x + width, 10.0


def match(
    boxes: list[tuple[float, ...]], objects: list[tuple[float, ...]], best: bool = False, **thresholds: object
) -> list[int]:
    settings: dict[str, object] = {"fg_threshold": 0.7, "bg_threshold": (0.0, 0.3), **thresholds}
    matches = match_by_iou(
        torch.tensor(boxes).view(-1, 4), torch.tensor(objects).view(-1, 4), best_for_each_object=best, **settings
    )
    assert matches.dtype == torch.int64
    return matches.tolist()


def test_three_bands() -> None:
    boxes = [strip(8), strip(7.5), strip(5), strip(2), strip(5, x=50)]  # 0.8, 0.75, 0.5, 0.2, 0
    assert match(boxes, [OBJECT]) == [0, 0, BETWEEN, BACKGROUND, BACKGROUND]


def test_bounds_are_at_least_fg_and_below_bg() -> None:
    boxes = [strip(5), strip(2.5)]  # 1/2 and 1/4 are exact in binary
    assert match(boxes, [OBJECT], fg_threshold=0.5, bg_threshold=(0.0, 0.25)) == [0, BETWEEN]
    assert match(boxes, [OBJECT], fg_threshold=0.5, bg_threshold=(0.25, 0.5)) == [0, BACKGROUND]


def test_background_from_a_tenth_as_in_fast_rcnn() -> None:
    boxes = [strip(6), strip(4), strip(1.5), strip(0.5), strip(5, x=50)]  # 0.6, 0.4, 0.15, 0.05, 0
    expected = [0, BACKGROUND, BACKGROUND, BETWEEN, BETWEEN]
    assert match(boxes, [OBJECT], fg_threshold=0.5, bg_threshold=(0.1, 0.5)) == expected


def test_a_box_answers_for_the_object_it_overlaps_most() -> None:
    objects = [strip(10), strip(10, x=10), strip(9)]
    assert match([strip(9), strip(10, x=10), strip(10)], objects) == [2, 1, 0]


def test_the_best_box_of_an_object_is_positive_however_low() -> None:
    boxes = [strip(2), strip(1), strip(5, x=50)]
    assert match(boxes, [OBJECT]) == [BACKGROUND, BACKGROUND, BACKGROUND]
    assert match(boxes, [OBJECT], best=True) == [0, BACKGROUND, BACKGROUND]


def test_all_that_tie_for_the_best_are_positive() -> None:
    boxes = [strip(5), strip(5, x=5), strip(4)]
    assert match(boxes, [OBJECT], best=True) == [0, 0, BETWEEN]


def test_a_best_box_keeps_its_own_best_object() -> None:
    # box 0 is the best that object 1 has (0.2), but overlaps object 0 more (0.8)
    objects = [strip(10), strip(2)]
    boxes = [strip(8), strip(5, x=50)]
    assert match(boxes, objects, best=True) == [0, BACKGROUND]


def test_an_object_that_overlaps_nothing_makes_nothing_positive() -> None:
    far = (100.0, 100.0, 110.0, 110.0)
    assert match([strip(2), strip(1)], [far], best=True) == [BACKGROUND, BACKGROUND]
    assert match([strip(8), strip(1)], [far, OBJECT], best=True) == [1, BACKGROUND]


def test_without_objects_all_is_background_if_zero_is() -> None:
    assert match([strip(2), strip(1)], [], best=True) == [BACKGROUND, BACKGROUND]
    assert match([strip(2), strip(1)], [], bg_threshold=(0.1, 0.5)) == [BETWEEN, BETWEEN]


def test_without_boxes_nothing_matches() -> None:
    assert match([], [OBJECT]) == match([], [OBJECT], best=True) == []
    assert match([], []) == []


SAMPLED = Assignment(  # the first and the sixth prediction take no part
    torch.tensor([BACKGROUND, 3, BACKGROUND, 0, BACKGROUND, BACKGROUND, 1, BACKGROUND, BACKGROUND, 0]),
    torch.tensor([0.0, 1, 1, 1, 1, 0, 1, 1, 1, 1]),
)
POSITIVE, BACK = {1, 3, 6, 9}, {2, 4, 7, 8}


@pytest.mark.parametrize(
    ("count", "fraction", "num_positive", "num_background"),
    [
        (4, 0.5, 2, 2),
        (4, 0.25, 1, 3),
        (6, 0.25, 1, 4),  # 1.5 positives are one; only four of five backgrounds are there
        (100, 0.5, 4, 4),  # fewer than asked
        (6, 1.0, 4, 2),  # background fills what positives leave
        (3, 1.0, 3, 0),
        (4, 0.0, 0, 4),
    ],
)
def test_counts_of_a_sample(count: int, fraction: float, num_positive: int, num_background: int) -> None:
    positive, background = sample(SAMPLED, count, fraction)
    assert (len(positive), len(background)) == (num_positive, num_background)
    assert set(positive.tolist()) <= POSITIVE
    assert set(background.tolist()) <= BACK
    assert len(set(positive.tolist())) == num_positive  # none twice
    assert len(set(background.tolist())) == num_background


def drawn(seed: int) -> tuple[list[int], list[int]]:
    torch.manual_seed(seed)
    positive, background = sample(SAMPLED, 4, 0.5)
    return positive.tolist(), background.tolist()


def test_a_sample_follows_the_generator_and_reaches_all() -> None:
    assert drawn(5) == drawn(5)
    samples = [drawn(seed) for seed in range(40)]
    assert {index for positive, _ in samples for index in positive} == POSITIVE
    assert {index for _, background in samples for index in background} == BACK


@pytest.mark.parametrize("count", [0, 5])
def test_nothing_to_draw(count: int) -> None:
    nothing = Assignment(torch.full((count,), BACKGROUND), torch.zeros(count))
    positive, background = sample(nothing, 4, 0.5)
    assert len(positive) == len(background) == 0


def target(boxes: list[tuple[float, ...]], ignore: list[bool]) -> Target:
    tensor = torch.tensor(boxes).view(-1, 4)
    return Target(Objects(tensor, torch.zeros(len(boxes), dtype=torch.int64), torch.tensor(ignore, dtype=torch.bool)))


def test_an_assignment_has_no_part_for_what_lies_between() -> None:
    assigner = IoUAssigner(0.7, (0.0, 0.3), best_for_each_object=False)
    boxes = torch.tensor([strip(8), strip(5), strip(2), strip(5, x=50)])  # 0.8, 0.5, 0.2, 0
    assignment = assigner.assign(boxes, target([OBJECT], [False]))
    assert assignment.index.tolist() == [0, BACKGROUND, BACKGROUND, BACKGROUND]
    assert assignment.weight.tolist() == [1, 0, 1, 1]
    assert assignment.index.dtype == torch.int64
    assert assignment.weight.dtype == torch.float32


@pytest.mark.parametrize("assigner", [IoUAssigner, BipartiteAssigner])
@pytest.mark.parametrize(("ignored_iof", "weight"), [(None, [1, 1, 1, 1]), (0.5, [1, 0, 0, 1]), (0.75, [1, 0, 1, 1])])
def test_background_inside_an_ignored_object_is_neutral_if_asked(
    assigner: type, ignored_iof: float | None, weight: list[float]
) -> None:
    """The index counts objects that are not ignored. Three quarters and one half of boxes 1 and 2 are in the crowd."""
    crowd, real = (20.0, 0.0, 30.0, 10.0), OBJECT
    boxes = torch.tensor([strip(8), strip(4, x=19), strip(4, x=28), strip(4, x=50)])
    further = {"bg_threshold": (0.0, 0.5), "best_for_each_object": True} if assigner is IoUAssigner else {}
    assignment = assigner(0.5, ignored_iof=ignored_iof, **further).assign(boxes, target([crowd, real], [True, False]))
    assert assignment.index.tolist() == [0, BACKGROUND, BACKGROUND, BACKGROUND]
    assert assignment.weight.tolist() == weight
    assert assignment.background.tolist() == [False, *(part > 0 for part in weight[1:])]


def test_only_an_ignored_object_is_no_object() -> None:
    boxes = torch.tensor([OBJECT, strip(5, x=50)])
    only_crowd = target([OBJECT], [True])
    for assigner in (IoUAssigner(0.5, (0.0, 0.5), True), BipartiteAssigner(0.5)):
        assert assigner.assign(boxes, only_crowd).background.tolist() == [True, True]
    for assigner in (IoUAssigner(0.5, (0.0, 0.5), True, 0.5), BipartiteAssigner(0.5, 0.5)):
        assert assigner.assign(boxes, only_crowd).background.tolist() == [False, True]


def test_bipartite_gives_each_object_a_box_of_its_own() -> None:
    """Both objects overlap box 0 best; the nearer takes it, the other its second choice, below any threshold."""
    boxes = torch.tensor([[0, 0, 10, 10], [8, 0, 18, 10], [50, 0, 60, 10]], dtype=torch.float32)
    objects = torch.tensor([[2, 0, 12, 10], [1, 0, 11, 10]], dtype=torch.float32)
    # IoU of object 0: 80 / 120 and 40 / 160; of object 1: 90 / 110 and 30 / 170
    assert match_bipartite(box_iou(objects, boxes), 0.5).tolist() == [1, 0, BACKGROUND]


def test_bipartite_prefers_the_pair_with_the_highest_iou_over_the_order() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 11]], dtype=torch.float32)
    objects = torch.tensor([[0, 0, 10, 12], [0, 0, 10, 11]], dtype=torch.float32)
    # object 1 is box 1; object 0, whose best is box 1 too (11 / 12), has to take box 0 (10 / 12)
    assert match_bipartite(box_iou(objects, boxes), 0.99).tolist() == [0, 1]


def test_bipartite_then_every_box_above_the_threshold() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [0, 0, 10, 4]], dtype=torch.float32)
    objects = torch.tensor([[0, 0, 10, 10]], dtype=torch.float32)
    assert match_bipartite(box_iou(objects, boxes), 0.5).tolist() == [0, 0, 0, BACKGROUND]  # IoU 1, .9, .5, .4


def test_bipartite_leaves_an_object_out_that_overlaps_no_free_box() -> None:
    boxes = torch.tensor([[0, 0, 10, 10]], dtype=torch.float32)
    objects = torch.tensor([[0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]], dtype=torch.float32)
    assert match_bipartite(box_iou(objects, boxes), 0.5).tolist() == [1]
    assert match_bipartite(box_iou(objects[2:], boxes), 0.5).tolist() == [BACKGROUND]
    assert match_bipartite(box_iou(objects[:0], boxes), 0.5).tolist() == [BACKGROUND]
    assert match_bipartite(box_iou(objects, boxes[:0]), 0.5).tolist() == []


def test_bipartite_equals_taking_the_best_pair_again_and_again() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        corner = torch.rand(20, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 5 + torch.rand(20, 2, generator=generator) * 20], dim=1)
        objects, boxes = boxes[:7], boxes[7:]
        iou = box_iou(objects, boxes)
        expected = torch.where(iou.max(dim=0).values >= 0.5, iou.argmax(dim=0), BACKGROUND)
        left = iou.clone()
        while left.max() > 0:
            pair = int(left.argmax())
            row, column = pair // len(boxes), pair % len(boxes)
            expected[column] = row
            left[row] = 0
            left[:, column] = 0
        assert torch.equal(match_bipartite(iou, 0.5), expected)

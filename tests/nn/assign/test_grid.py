"""Cells, anchors and collisions, on a few boxes whose result is counted by hand."""

import pytest
import torch
from torch import Tensor

from detkit.nn.anchors import grid_cells
from detkit.nn.assign.assignment import Assignment
from detkit.nn.assign.grid import CellAssigner, GridAnchorAssigner, cells_of, last_at_each, last_of_each
from detkit.nn.assign.positives import positives_of
from detkit.structures import Objects, Target
from tests.nn.heads.support import make_target
from tests.ops.cases import random_boxes
from tests.reference import yolo as reference


def around(*centres: tuple[float, float], side: float = 8) -> Tensor:
    corners = torch.tensor(centres).view(-1, 2)
    return torch.cat([corners - side / 2, corners + side / 2], dim=1)


def test_cells_are_column_and_row_of_the_centre() -> None:
    boxes = around((5, 25), (31, 12), (16, 8))
    assert cells_of(boxes, 8.0, torch.tensor([5, 4])).tolist() == [
        [0, 3],
        [3, 1],
        [2, 1],
    ]  # the last lies on a corner of four cells
    assert cells_of(boxes, torch.tensor([10.0, 5.0]), torch.tensor([5, 6])).tolist() == [[0, 5], [3, 2], [1, 1]]
    assert cells_of(boxes[:0], 8.0, 5).shape == (0, 2)


def test_a_centre_on_the_border_or_beyond_stays_in_the_last_cell() -> None:
    boxes = around((40, 32), (41, 3), (-1, 50), (0, 0))
    assert cells_of(boxes, 8.0, torch.tensor([5, 4])).tolist() == [[4, 3], [4, 0], [0, 3], [0, 0]]


def test_every_box_may_have_its_own_grid() -> None:
    boxes = around((20, 20), (20, 20), (32, 32))
    sizes = torch.tensor([[4, 4], [2, 2], [2, 1]])
    assert cells_of(boxes, torch.tensor([[8.0], [16.0], [16.0]]), sizes).tolist() == [[2, 2], [1, 1], [1, 0]]


def one_cell(anchors: Tensor, **fields: float) -> GridAnchorAssigner:
    """A picture of 1000 x 1000 px with one cell."""
    count = len(anchors)
    return GridAnchorAssigner(torch.zeros(count, 2).long(), anchors, torch.full((count, 1), 1000.0), 0.5, **fields)


def test_an_object_falls_on_the_anchor_of_the_most_similar_shape_wherever_it_lies() -> None:
    assigner = one_cell(torch.tensor([[10.0, 10.0], [40.0, 20.0], [20.0, 40.0]]))
    boxes = torch.tensor([[90.0, 7, 98, 20], [0, 0, 30, 28], [5, 5, 19, 55], [1, 1, 3, 2]])
    # 80 of 124; 600 of 1040 against 560 of 1080; 560 of 940; 2 of 100
    assert assigner.predictions_of(boxes).tolist() == [0, 1, 2, 0]
    assert assigner.predictions_of(boxes[:0]).tolist() == []


def test_of_equally_similar_anchors_the_first() -> None:
    anchors = torch.tensor([[64.0, 64.0], [32.0, 16.0], [16.0, 32.0], [16.0, 32.0]])
    squares = torch.tensor([[0.0, 0, 16, 16], [8, 8, 24, 24]])
    assert one_cell(anchors).predictions_of(squares).tolist() == [1, 1]
    assert one_cell(anchors.flip(0)).predictions_of(squares).tolist() == [0, 0]


def test_anchors_of_the_most_similar_shape_are_those_of_the_slow_kernel() -> None:
    boxes = random_boxes(200).float()
    anchors = torch.rand(9, 2, generator=torch.Generator().manual_seed(1)) * 50 + 1
    sides = (boxes[:, 2:] - boxes[:, :2]).tolist()
    expected = [reference.best_anchor(w, h, anchors.tolist()) for w, h in sides]
    assert one_cell(anchors).predictions_of(boxes).tolist() == expected
    assert len(set(expected)) > 5


def two_levels(threshold: float = 0.5, ignored_iof: float | None = None) -> tuple[GridAnchorAssigner, Tensor]:
    """On 64 x 32 px: 4 x 2 cells of 16 px with anchors 8 x 8, then 2 x 1 cells of 32 px with 32 x 32; and boxes of the
    size of the anchor in the middle of each cell."""
    cells = torch.cat([grid_cells(2, 4, torch.device("cpu")), grid_cells(1, 2, torch.device("cpu"))])
    sides = torch.tensor([8.0] * 8 + [32.0] * 2)[:, None].expand(-1, 2)
    strides = torch.tensor([16.0] * 8 + [32.0] * 2)[:, None]
    center = (cells + 0.5) * strides
    boxes = torch.cat([center - sides / 2, center + sides / 2], dim=1)
    return GridAnchorAssigner(cells, sides, strides, threshold, ignored_iof), boxes


def test_several_objects_on_one_prediction_leave_it_to_the_last() -> None:
    assigner, boxes = two_levels()
    target = make_target([(17, 1, 27, 11), (0, 0, 40, 30), (20, 4, 28, 12), (34, 18, 44, 28)])
    assignment = assigner.assign(boxes, target)
    assert assignment.predictions.tolist() == [1, 8, 1, 6]
    assert assignment.index.tolist() == [-1, 2, -1, -1, -1, -1, 3, -1, 1, -1]
    assert assignment.weight.tolist() == [1] * 10


def test_predictions_that_overlap_an_object_well_take_no_part_unless_they_answer_for_it() -> None:
    assigner, boxes = two_levels(0.5)
    boxes[0] = torch.tensor([17.0, 0.0, 27.0, 10.0])  # predicted from the cell beside: 72 of 128 px^2 are common
    boxes[2] = torch.tensor([20.0, 0.0, 30.0, 10.0])  # 60 of 140
    assignment = assigner.assign(boxes, make_target([(18, 1, 26, 10)]))
    assert assignment.index.tolist() == [-1, 0] + [-1] * 8
    assert assignment.weight.tolist() == [0] + [1] * 9
    assert assignment.background.tolist() == [False, False] + [True] * 8


def test_background_on_ignored_objects_is_neutral_only_if_configured() -> None:
    # the prediction of cell (0, 0) lies inside the ignored object, that of cell (1, 0) half; that of cell (2, 0)
    # answers for an object and stays positive
    target = make_target([(0, 0, 24, 16), (36, 4, 44, 12), (32, 0, 48, 16)], [0, 1, 2], [True, False, True])
    for ignored_iof, neutral in ((None, []), (0.51, [0]), (0.5, [0, 1])):
        assigner, boxes = two_levels(ignored_iof=ignored_iof)
        assignment = assigner.assign(boxes, target)
        assert assignment.index.tolist() == [-1, -1, 0] + [-1] * 7
        assert (assignment.weight == 0).nonzero().squeeze(1).tolist() == neutral


def test_an_image_without_objects_has_only_background() -> None:
    assigner, boxes = two_levels()
    assignment = assigner.assign(boxes, make_target([]))
    assert assignment.background.all()
    assert len(assignment.predictions) == 0
    alone = CellAssigner(2, torch.tensor([64.0, 32.0])).assign(boxes[:8], make_target([]))
    assert alone.background.all()


def test_a_cell_learns_one_of_its_objects_with_the_box_that_overlaps_it_most() -> None:
    """2 x 2 cells of 32 x 16 px, two boxes each. The first two objects share cell (0, 0)."""
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 16, 8]]).repeat(4, 1)
    target = make_target([(0, 0, 8, 9), (0, 0, 17, 8), (40, 20, 48, 28)])
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        index = CellAssigner(2, torch.tensor([64.0, 32.0])).assign(boxes, target).index.tolist()
        seen.add(tuple(index))
    # no box overlaps the third object; the second of its cell is nearer to it
    assert seen == {(0, -1, -1, -1, -1, -1, -1, 2), (-1, 1, -1, -1, -1, -1, -1, 2)}


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([3, 1, 3, 0, 1, 3], [3, 4, 5]),  # values 0, 1 and 3
        ([2, 2, 2], [2]),
        ([0], [0]),
        ([], []),
        ([4, 3, 2, 1, 0], [4, 3, 2, 1, 0]),
    ],
)
def test_of_equal_values_the_last(positions: list[int], expected: list[int]) -> None:
    values = torch.tensor(positions, dtype=torch.int64)
    assert last_of_each(values, 5).tolist() == expected
    table = [max((i for i, value in enumerate(positions) if value == n), default=-1) for n in range(5)]
    assert last_at_each(values, 5).tolist() == table


def test_positives_of_a_batch_image_by_image() -> None:
    boxes = random_boxes(5).float()
    labels, ignore = torch.tensor([4, 3, 2, 1, 0]), torch.tensor([False, True, False, False, False])
    spans = ((0, 0), (0, 3), (3, 3), (3, 5))
    targets = [Target(Objects(boxes[i:j], labels[i:j], ignore[i:j])) for i, j in spans]
    index = torch.tensor([[-1, -1, -1], [1, -1, 0], [-1, -1, -1], [-1, 1, 1]])
    positives = positives_of([Assignment(row, torch.ones(3)) for row in index], targets)
    assert positives.image.tolist() == [1, 1, 3, 3]
    assert positives.prediction.tolist() == [0, 2, 1, 2]
    assert positives.labels.tolist() == [2, 4, 0, 0]
    assert torch.equal(positives.boxes, boxes[[2, 0, 4, 4]])

"""Cells, anchors and collisions, on boxes small enough to see."""

import pytest
import torch
from torch import Tensor

from detkit.nn.assign.grid import batch_objects, best_anchors, cells_of, last_of_each
from detkit.structures import Target
from tests.ops.cases import random_boxes
from tests.reference import yolo as reference


def around(*centres: tuple[float, float], side: float = 8) -> Tensor:
    corners = torch.tensor(centres).view(-1, 2)
    return torch.cat([corners - side / 2, corners + side / 2], dim=1)


def test_cells_are_column_and_row_of_the_centre() -> None:
    boxes = around((5, 25), (31, 12), (16, 8))
    assert cells_of(boxes, 8.0, (5, 4)).tolist() == [[0, 3], [3, 1], [2, 1]]  # the last lies on a corner of four cells
    assert cells_of(boxes, torch.tensor([10.0, 5.0]), (5, 6)).tolist() == [[0, 5], [3, 2], [1, 1]]
    assert cells_of(boxes[:0], 8.0, (5, 4)).shape == (0, 2)


def test_a_centre_on_the_border_or_beyond_stays_in_the_last_cell() -> None:
    boxes = around((40, 32), (41, 3), (-1, 50), (0, 0))
    assert cells_of(boxes, 8.0, (5, 4)).tolist() == [[4, 3], [4, 0], [0, 3], [0, 0]]


def test_every_box_may_have_its_own_grid() -> None:
    boxes = around((20, 20), (20, 20), (32, 32))
    sizes = torch.tensor([[4, 4], [2, 2], [2, 1]])
    assert cells_of(boxes, torch.tensor([[8.0], [16.0], [16.0]]), sizes).tolist() == [[2, 2], [1, 1], [1, 0]]


def test_the_best_anchor_has_the_most_similar_shape_wherever_the_box_lies() -> None:
    anchors = torch.tensor([[10.0, 10.0], [40.0, 20.0], [20.0, 40.0]])
    boxes = torch.tensor([[90.0, 7, 98, 20], [0, 0, 30, 28], [5, 5, 19, 55], [1, 1, 3, 2]])
    # 80 of 124; 600 of 1040 against 560 of 1080; 560 of 940; 2 of 100
    assert best_anchors(boxes, anchors).tolist() == [0, 1, 2, 0]
    assert best_anchors(boxes[:0], anchors).tolist() == []


def test_of_equally_similar_anchors_the_first() -> None:
    anchors = torch.tensor([[64.0, 64.0], [32.0, 16.0], [16.0, 32.0], [16.0, 32.0]])
    squares = torch.tensor([[0.0, 0, 16, 16], [8, 8, 24, 24]])
    assert best_anchors(squares, anchors).tolist() == [1, 1]
    assert best_anchors(squares, anchors.flip(0)).tolist() == [0, 0]


def test_best_anchors_are_those_of_the_slow_kernel() -> None:
    boxes = random_boxes(200).float()
    anchors = torch.rand(9, 2, generator=torch.Generator().manual_seed(1)) * 50 + 1
    sides = (boxes[:, 2:] - boxes[:, :2]).tolist()
    expected = [reference.best_anchor(w, h, anchors.tolist()) for w, h in sides]
    assert best_anchors(boxes, anchors).tolist() == expected
    assert len(set(expected)) > 5


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([3, 1, 3, 0, 1, 3], [3, 4, 5]),  # slots 0, 1 and 3
        ([2, 2, 2], [2]),
        ([0], [0]),
        ([], []),
        ([4, 3, 2, 1, 0], [4, 3, 2, 1, 0]),
    ],
)
def test_of_objects_on_one_slot_the_last(slots: list[int], expected: list[int]) -> None:
    assert last_of_each(torch.tensor(slots, dtype=torch.int64), 5).tolist() == expected


def test_objects_of_a_batch_in_one_row() -> None:
    boxes = random_boxes(5).float()
    labels, ignore = torch.tensor([4, 3, 2, 1, 0]), torch.tensor([False, True, False, False, False])
    targets = [Target(boxes[i:j], labels[i:j], ignore[i:j]) for i, j in ((0, 0), (0, 3), (3, 3), (3, 5))]
    objects = batch_objects(targets)
    assert len(objects) == 4
    assert objects.image.tolist() == [1, 1, 3, 3]
    assert objects.labels.tolist() == [4, 2, 1, 0]
    assert torch.equal(objects.boxes, boxes[[0, 2, 3, 4]])
    assert len(batch_objects(targets[:1])) == 0

"""Candidates of YOLOv5 by hand, and against a slow reference."""

import torch

from detkit.nn.assign.shape_ratio import Level, similar_anchors

# Four columns and three rows of 8 px with an anchor of 8 x 8 and one of 40 x 40, then a level of 16 px and one anchor.
FINE = Level(8, 4, 3, torch.tensor([[8.0, 8.0], [40.0, 40.0]]), 0)
COARSE = Level(16, 2, 2, torch.tensor([[16.0, 16.0]]), FINE.end)


def pairs(boxes: list[tuple[float, float, float, float]], *levels: Level) -> list[tuple[int, int]]:
    predictions, objects = similar_anchors(torch.tensor(boxes).view(-1, 4), levels)
    return sorted(zip(predictions.tolist(), objects.tolist(), strict=True))


def cell(column: int, row: int, anchor: int = 0) -> int:
    return (row * FINE.columns + column) * 2 + anchor


def around(x: float, y: float, width: float = 8, height: float = 8) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def test_the_cell_and_its_nearer_neighbours() -> None:
    """(11, 14) is right of the left border of column 1 by 3 px of 8, and above the lower border of row 1 by 2."""
    assert pairs([around(11, 14)], FINE) == sorted((cell(*at), 0) for at in ((1, 1), (0, 1), (1, 2)))
    assert pairs([around(14, 10)], FINE) == sorted((cell(*at), 0) for at in ((1, 1), (2, 1), (1, 0)))


def test_in_the_middle_of_a_cell_there_is_no_neighbour() -> None:
    assert pairs([around(12, 12)], FINE) == [(cell(1, 1), 0)]


def test_there_is_no_neighbour_outside_of_the_picture() -> None:
    assert pairs([around(2, 4)], FINE) == [(cell(0, 0), 0)]
    assert pairs([around(30, 22)], FINE) == [(cell(3, 2), 0)]


def test_an_anchor_of_another_shape_does_not_answer() -> None:
    """Neither side may be four times as long: 32 px beside 8 is, 31 is not."""
    assert pairs([around(12, 12, 32, 8)], FINE) == []
    assert pairs([around(12, 12, 31, 8)], FINE) == [(cell(1, 1), 0)]
    assert pairs([around(12, 12, 2, 8)], FINE) == []
    assert pairs([around(12, 12, 20, 20)], FINE) == [(cell(1, 1, 0), 0), (cell(1, 1, 1), 0)]


def test_every_level_has_its_own() -> None:
    """(12, 12) lies in the middle of a fine cell; of the coarse ones it is in the first, nearer to right and below."""
    expected = [(cell(1, 1), 0), *((COARSE.start + i, 0) for i in (0, 1, 2))]
    assert pairs([around(12, 12)], FINE, COARSE) == expected


def test_without_objects_there_are_no_pairs() -> None:
    assert pairs([], FINE, COARSE) == []


def test_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(60, 2, generator=generator) * torch.tensor([32.0, 24.0])
    sides = torch.exp(torch.rand(60, 2, generator=generator) * 4)
    boxes = torch.cat([center - sides / 2, center + sides / 2], dim=1)
    expected = []
    for number, ((x, y), (w, h)) in enumerate(zip(center.tolist(), sides.tolist(), strict=True)):
        for level in (FINE, COARSE):
            x_cells, y_cells = x / level.stride, y / level.stride
            for row in range(level.rows):
                for column in range(level.columns):
                    in_row, in_column = row == int(y_cells), column == int(x_cells)
                    beside = in_row and (column - 0.5 < x_cells < column or column + 1 < x_cells < column + 1.5)
                    above = in_column and (row - 0.5 < y_cells < row or row + 1 < y_cells < row + 1.5)
                    if (in_row and in_column) or beside or above:
                        for anchor, (aw, ah) in enumerate(level.anchors.tolist()):
                            if max(w / aw, aw / w, h / ah, ah / h) < 4:
                                cells = row * level.columns + column
                                expected.append((level.start + cells * len(level.anchors) + anchor, number))
    assert pairs([tuple(box) for box in boxes.tolist()], FINE, COARSE) == sorted(expected)

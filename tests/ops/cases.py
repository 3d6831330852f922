"""Inputs that the tests of all ops share."""

import torch
from torch import Tensor


def random_boxes(count: int, *, size: float = 100, min_side: float = 1, seed: int = 0) -> Tensor:
    """float64 `[count, 4]` xyxy inside a square of `size` pixels, sides from `min_side` to half the square."""
    generator = torch.Generator().manual_seed(seed)
    sides = min_side + torch.rand(count, 2, generator=generator, dtype=torch.float64) * (size / 2 - min_side)
    corners = torch.rand(count, 2, generator=generator, dtype=torch.float64) * (size - sides)
    return torch.cat((corners, corners + sides), dim=1)


def grid_boxes(count: int, *, seed: int = 0) -> Tensor:
    """float64 `[count, 4]` with small whole corners: equal boxes, shared edges and simple overlaps abound."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 6, (count, 2), generator=generator)
    sides = torch.randint(1, 5, (count, 2), generator=generator)
    return torch.cat((corners, corners + sides), dim=1).double()


def degenerate_boxes() -> Tensor:
    """float64 `[8, 4]`: points, lines, twins, one box within another, and boxes that touch."""
    return torch.tensor(
        [
            [5, 5, 5, 5],
            [5, 5, 5, 5],
            [5, 5, 15, 5],
            [5, 5, 5, 15],
            [0, 0, 10, 10],
            [0, 0, 10, 10],
            [2, 2, 4, 4],
            [10, 0, 20, 10],
        ],
        dtype=torch.float64,
    )


BOXES = {
    "random": random_boxes(12),
    "grid": grid_boxes(12),
    "degenerate": degenerate_boxes(),
    "one": random_boxes(1),
    "empty": torch.zeros(0, 4, dtype=torch.float64),
}

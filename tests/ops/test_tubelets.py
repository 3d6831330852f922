"""Overlap and suppression of tubelets against loops over frames and tubelets."""

import pytest
import torch
from torch import Tensor

from detkit.ops.tubelets import suppress_tubelets, tubelet_iou
from tests.ops.cases import degenerate_boxes, random_boxes
from tests.reference import tubelets as reference


def random_tubelets(groups: int, count: int, frames: int, seed: int = 0) -> Tensor:
    """float64 `[groups, count, frames, 4]`: boxes that move a little from frame to frame."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(groups * count, min_side=20, seed=seed).view(groups, count, 1, 4)
    corners = torch.randn(groups, count, frames, 2, 2, generator=generator, dtype=torch.float64)
    return boxes + corners.flatten(-2).cumsum(dim=2)


def test_overlap_by_hand() -> None:
    """A still square of 10 px, and one that is on it, 5 px beside it and away from it: IoU 1, 1 / 3 and 0."""
    still = torch.tensor([[[0.0, 0, 10, 10]] * 3])
    moving = torch.tensor([[[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10]]])
    torch.testing.assert_close(tubelet_iou(still, moving), torch.tensor([[4 / 9]]))


@pytest.mark.parametrize("frames", [1, 6])
def test_overlap_equals_the_mean_over_frames(frames: int) -> None:
    tubelets1, tubelets2 = random_tubelets(2, 7, frames), random_tubelets(2, 5, frames, seed=1)
    expected = [
        [[reference.mean_iou(a, b) for b in group2] for a in group1]
        for group1, group2 in zip(tubelets1.tolist(), tubelets2.tolist(), strict=True)
    ]
    torch.testing.assert_close(tubelet_iou(tubelets1, tubelets2), torch.tensor(expected, dtype=torch.float64))
    alone = tubelet_iou(tubelets1[1], tubelets2[1])  # `[N, M]` has a compiled kernel
    torch.testing.assert_close(alone, torch.tensor(expected[1], dtype=torch.float64))


def test_overlap_without_tubelets_or_with_other_frames() -> None:
    assert tubelet_iou(torch.zeros(0, 6, 4), torch.zeros(3, 6, 4)).shape == (0, 3)
    with pytest.raises(ValueError, match="the same number of frames, got 6 and 5"):
        tubelet_iou(torch.zeros(2, 6, 4), torch.zeros(3, 5, 4))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.45, 1.0])
def test_suppression_equals_the_definition(threshold: float) -> None:
    tubelets = random_tubelets(4, 60, 3)
    stays = suppress_tubelets(tubelets, threshold)
    scores = [-float(rank) for rank in range(60)]
    for group, mask in zip(tubelets.tolist(), stays, strict=True):
        assert mask.nonzero().squeeze(1).tolist() == reference.nms(group, scores, threshold)


def test_suppression_of_degenerate_boxes_and_of_none() -> None:
    boxes = degenerate_boxes()[None, :, None]
    expected = reference.nms(boxes[0].tolist(), [-float(rank) for rank in range(8)], 0.5)
    assert suppress_tubelets(boxes, 0.5)[0].nonzero().squeeze(1).tolist() == expected
    assert suppress_tubelets(torch.zeros(2, 0, 6, 4), 0.5).shape == (2, 0)


def test_a_chain_in_which_each_suppresses_the_next() -> None:
    """The most rounds that it can take: every other one remains."""
    left = torch.arange(40.0)[:, None, None] * 4
    tubelets = torch.cat([left, torch.zeros_like(left), left + 10, torch.full_like(left, 10)], dim=2)
    assert suppress_tubelets(tubelets, 0.4).tolist() == [True, False] * 20  # IoU 6 / 14 of neighbours, 2 / 18 of others


def test_an_overlap_equal_to_the_threshold_stays() -> None:
    """IoU 1 / 2 and 1 in the two frames."""
    tubelets = torch.tensor([[[0.0, 0, 2, 2], [0, 0, 2, 2]], [[0, 0, 2, 1], [0, 0, 2, 2]]])
    assert suppress_tubelets(tubelets, 0.75).tolist() == [True, True]
    assert suppress_tubelets(tubelets, 0.74).tolist() == [True, False]

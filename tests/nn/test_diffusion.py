"""Noise on boxes and a step back, by hand."""

import math

import pytest
import torch

from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.diffusion import (
    cosine_alpha_bars,
    ddim_step,
    diffuse,
    padded_boxes,
    sampling_times,
    scaled_boxes,
    unscaled_boxes,
)


def test_the_cosine_schedule_by_hand() -> None:
    """Two times: f falls from cos^2(.008 / 1.008 * 90 degrees) over cos^2(.508 / 1.008 * 90 degrees) to 0, and the last
    beta, 1, is cut to .999."""
    first = math.cos(math.pi / 2 * 0.008 / 1.008) ** 2
    middle = math.cos(math.pi / 2 * 0.508 / 1.008) ** 2
    assert cosine_alpha_bars(2).tolist() == pytest.approx([middle / first, middle / first * 0.001])


def test_the_schedule_ends_in_noise() -> None:
    alpha_bars = cosine_alpha_bars(1000)
    assert (alpha_bars.diff() < 0).all()
    assert alpha_bars[0] > 0.9999
    assert alpha_bars[499].sqrt() == pytest.approx(math.cos(math.pi / 2 * 0.508 / 1.008), abs=1e-3)
    assert 0 < alpha_bars[-1] < 1e-8


def test_scaled_boxes_by_hand() -> None:
    boxes = torch.tensor([[0.5, 0.25, 1.0, 0.0]])
    scaled = scaled_boxes(boxes, 2.0)
    assert scaled.tolist() == [[0.0, -1.0, 2.0, -2.0]]
    assert torch.equal(unscaled_boxes(scaled, 2.0), boxes)
    assert unscaled_boxes(torch.tensor([[3.0, -9.0, 2.0, 1.0]]), 2.0).tolist() == [[1.0, 0.0, 1.0, 0.75]]


def test_noise_by_hand() -> None:
    """Each image has the noise of its own time: shares of .36 and .64 are factors of .6 and .8."""
    start, noise = torch.tensor([1.0, -2.0]).expand(2, 1, 2), torch.tensor([3.0, 0.5]).expand(2, 1, 2)
    noisy = diffuse(start, noise, torch.tensor([0.36, 0.64]))
    torch.testing.assert_close(noisy, torch.tensor([[[3.0, -0.8]], [[2.6, -1.3]]]))


def test_a_ddim_step_by_hand() -> None:
    """The noise in 1.1 is (1.1 - .6 * .5) / .8 = 1. The variance of what is drawn anew is (1 - .36 / .64) .36 / .64 =
    63 / 256, which leaves .36 - 63 / 256 = .3375^2 to the old noise."""
    noisy, start, noise = (torch.tensor(value) for value in (1.1, 0.5, 2.0))
    alpha_bar, following = torch.tensor(0.36), torch.tensor(0.64)
    expected = 0.8 * 0.5 + 0.3375 * 1 + math.sqrt(63 / 256) * 2
    assert ddim_step(noisy, start, alpha_bar, following, noise).item() == pytest.approx(expected)
    assert ddim_step(noisy, start, alpha_bar, following, noise, eta=0.0).item() == pytest.approx(0.8 * 0.5 + 0.6)


def test_the_first_step_from_noise_alone() -> None:
    """In float32 as little is left of the old noise as rounding allows."""
    alpha_bars = cosine_alpha_bars(1000).float()
    for following in (249, 332, 499, 665, 749, 998):
        assert ddim_step(torch.ones(()), torch.zeros(()), alpha_bars[999], alpha_bars[following], torch.ones(())) > 0


def test_a_step_from_the_true_box_without_new_noise_is_the_box_with_less_of_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    start, noise = torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64)
    alpha_bars = cosine_alpha_bars(1000)
    noisy = diffuse(start, noise, alpha_bars[[800, 800]])
    stepped = ddim_step(noisy, start, alpha_bars[800], alpha_bars[300], torch.zeros(()), eta=0.0)
    torch.testing.assert_close(stepped, diffuse(start, noise, alpha_bars[[300, 300]]))


def test_the_times_of_the_steps() -> None:
    assert sampling_times(1000, 1) == [999]
    assert sampling_times(1000, 2) == [999, 499]
    assert sampling_times(1000, 3) == [999, 665, 332]  # -1, 332.3, 665.7 and 999 are evenly spaced
    assert sampling_times(1000, 4) == [999, 749, 499, 249]


def test_objects_are_joined_by_drawn_boxes() -> None:
    torch.manual_seed(0)
    boxes = 0.2 + 0.05 * torch.arange(28.0).view(7, 4) / 7
    padded = padded_boxes(SetTargets(boxes, torch.zeros(7, dtype=torch.int64), [2, 0, 5]), 3)
    assert padded.shape == (3, 3, 4)
    rows = [[tuple(row) for row in image] for image in padded.tolist()]
    objects = [tuple(row) for row in boxes.tolist()]
    assert set(rows[0]) & set(objects) == set(objects[:2])
    assert rows[1][0] == (0.5, 0.5, 1.0, 1.0)
    assert len(set(rows[2])) == 3
    assert set(rows[2]) < set(objects[2:])


def test_drawn_boxes_are_normal_around_the_middle() -> None:
    torch.manual_seed(0)
    none = SetTargets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [0])
    drawn = padded_boxes(none, 20_001)[0, 1:]
    assert drawn.mean(dim=0).tolist() == pytest.approx([0.5] * 4, abs=0.01)
    assert drawn.std(dim=0).tolist() == pytest.approx([1 / 6] * 4, abs=0.01)
    assert drawn[:, 2:].min() == pytest.approx(1e-4)
    assert drawn[:, :2].min() < 0

"""Changes of colour: none moves a pixel, and each has its published ranges."""

import colorsys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from detkit.data.transforms import Augment, parse_augment
from detkit.data.transforms.geometry import FILL
from detkit.structures import Sample
from tests.data.transforms.samples import assert_same, only, three_rectangles, with_boxes


@pytest.fixture
def sample() -> Sample:
    return three_rectangles()


def test_photometric_changes_colours_only(sample: Sample) -> None:
    result = only("photometric", each_probability=1)(sample, 1)
    assert (result.image != sample.image).any()
    assert_same(replace(result, image=sample.image), sample)


def test_hsv_keeps_grey_grey_and_changes_its_value(sample: Sample) -> None:
    grey = replace(sample, image=np.full((4, 4, 3), 100, np.uint8))
    augment = only("hsv")
    values = [augment(grey, seed).image for seed in range(200)]
    assert all((image == image[0, 0, 0]).all() for image in values)
    seen = [int(image[0, 0, 0]) for image in values]
    assert 66 <= min(seen) < 75
    assert 140 < max(seen) <= 150


def test_photometric_changes_come_one_by_one() -> None:
    """Of a grey picture saturation and hue change nothing: the rest is brightness added, contrast multiplied."""
    grey = with_boxes(np.full((4, 4, 3), 100, np.uint8))
    augment = only("photometric")
    values = np.array([int(augment(grey, seed).image[0, 0, 0]) for seed in range(600)])
    assert 0.15 < (values == 100).mean() < 0.35, "neither brightness nor contrast: a quarter"
    assert values.min() >= (100 - 32) * 0.5 - 1
    assert values.max() <= (100 + 32) * 1.5 + 1
    assert values.min() < 45
    assert values.max() > 175


@pytest.mark.parametrize("hsv", [{"hue": 0.6}, {"saturation": 0.5}, {"exposure": 0.9}])
def test_hsv_has_its_ranges(hsv: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="Input should be"):
        only("hsv", **hsv)


def hues(image: np.ndarray) -> np.ndarray:
    return np.array([[colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in row] for row in image])


def test_hsv_moves_all_hues_alike_and_keeps_the_rest() -> None:
    """By the definition of HSV in Python's colorsys, to within the rounding of 8 bits."""
    image = np.array([[(200, 40, 30), (30, 180, 60), (50, 70, 220), (220, 210, 40)]], np.uint8)
    augment = only("hsv", saturation=1, exposure=1)
    before, moves = hues(image), []
    for seed in range(100):
        after = hues(augment(with_boxes(image), seed).image)
        moved = (after[..., 0] - before[..., 0] + 0.5) % 1 - 0.5
        np.testing.assert_allclose(moved, moved.mean(), atol=0.012)
        np.testing.assert_allclose(after[..., 1:], before[..., 1:], atol=0.012)
        moves.append(moved.mean())
    assert -0.105 < min(moves) < -0.08
    assert 0.08 < max(moves) < 0.105


def test_hsv_blends_with_grey_by_one_factor() -> None:
    image = np.array([[(140, 100, 90), (90, 130, 100), (100, 110, 150)]], np.uint8)
    augment = only("hsv", hue=0, exposure=1)
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    factors = []
    for seed in range(100):
        result = augment(with_boxes(image), seed).image
        factor = ((result - grey) * (image - grey)).sum() / ((image - grey) ** 2).sum()
        np.testing.assert_allclose(result, grey + factor * (image - grey), atol=1.1)
        factors.append(factor)
    assert 0.65 < min(factors) < 0.72
    assert 1.43 < max(factors) < 1.52


@pytest.mark.parametrize("change", [{"name": "hsv"}, {"name": "photometric", "each_probability": 1}])
def test_the_canvas_keeps_its_colour_and_the_picture_changes(change: dict[str, Any]) -> None:
    """Colours that change after a window are those of the whole picture changed before it."""
    image, zoom = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8), {"name": "scale_jitter"}
    for seed in range(10):
        coloured, larger, smaller = (
            Augment(parse_augment([change, *jitter]))(with_boxes(image), seed).image
            for jitter in ([], [zoom | {"scale": [0.5, 0.5]}], [zoom | {"scale": [2, 2]}])
        )
        assert (coloured != image).any()
        matches = [(y, x) for y in range(21) for x in range(31) if (larger[y : y + 20, x : x + 30] == coloured).all()]
        assert len(matches) == 1
        assert (larger == FILL).all(axis=2).sum() == 40 * 60 - 20 * 30
        assert any((coloured[y : y + 10, x : x + 15] == smaller).all() for y in range(11) for x in range(16))


def test_hsv_shift_moves_half_of_the_time_and_stops_at_the_ends() -> None:
    """Each of the three alone; saturation and value move by up to 30 of 255, the hue by up to 5 of 180."""
    image = np.array([[(200, 40, 30), (60, 200, 80), (245, 240, 250), (12, 10, 8)]], np.uint8)
    before, names = hues(image), ("hue", "saturation", "value")
    for channel, name in enumerate(names):
        augment = only("hsv_shift", **{other: 0 for other in names if other != name})
        moves, still = [], 0
        for seed in range(150):
            result = augment(with_boxes(image), seed).image
            still += (result == only("hsv_shift", hue=0, saturation=0, value=0)(with_boxes(image), seed).image).all()
            moves.append(hues(result)[0, :, channel] - before[0, :, channel])
        assert 50 < still < 110
        moved = (np.array(moves)[:, :2] + 0.5) % 1 - 0.5  # the hue is a circle
        limit = (5 / 180, 30 / 255, 30 / 255)[channel]
        assert 0.8 * limit < abs(moved).max() < limit + 0.02
        assert (moved > 0.5 * limit).any()
        assert (moved < -0.5 * limit).any()
        if name == "hue":
            np.testing.assert_allclose(moved[:, 0], moved[:, 1], atol=0.015)  # red too, whose hue passes 0
        if name == "value":
            bright, dark = np.array(moves)[:, 2:].T
            assert bright.max() == pytest.approx(5 / 255, abs=1e-6), "250 stops at 255"
            assert dark.min() == pytest.approx(-12 / 255, abs=1e-6)

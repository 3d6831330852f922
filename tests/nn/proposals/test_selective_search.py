"""Selective search on pictures whose segments are known, its similarities by hand, and its promises on any picture."""

from itertools import pairwise

import numpy as np
import pytest

from detkit.nn.proposals.selective_search import (
    ALL,
    QUALITY,
    ColourSpace,
    Segments,
    SelectiveSearchConfig,
    first_segments,
    group,
    histograms,
    in_colour_space,
    neighbours,
    selective_search,
)


def flat_picture() -> np.ndarray:
    """Grey 60 x 90 with a red square of 30 px beside a green one, and a blue bar of 15 x 40 apart from them."""
    image = np.full((60, 90, 3), 128, np.uint8)
    image[10:40, 5:35] = (200, 20, 20)
    image[10:40, 35:65] = (20, 180, 20)
    image[10:50, 70:85] = (20, 20, 220)
    return image


SQUARES = [[5, 10, 35, 40], [35, 10, 65, 40], [70, 10, 85, 50]]


def test_first_segments_of_a_flat_picture() -> None:
    segments = first_segments(in_colour_space(flat_picture(), "hsv"), scale=50)
    for box in [*SQUARES, [0, 0, 90, 60]]:
        close = np.abs(segments.boxes - box).max(axis=1) <= 1  # the smoothing moves a border by a pixel at most
        assert close.any(), box
    assert segments.sizes.sum() == 60 * 90
    np.testing.assert_allclose(segments.colour.sum(axis=1), 1)
    np.testing.assert_allclose(segments.texture.sum(axis=1), 1)
    assert segments.colour.shape[1] == 25 * 3
    assert segments.texture.shape[1] == 10 * 8 * 3


def test_the_proposals_of_a_flat_picture_hold_its_objects_and_their_unions() -> None:
    boxes = selective_search(flat_picture(), SelectiveSearchConfig(min_side=10))
    for box in [*SQUARES, [0, 0, 90, 60]]:
        assert np.abs(boxes - box).max(axis=1).min() <= 1, box


def test_neighbours_share_a_side() -> None:
    labels = np.array([[0, 0, 1], [2, 2, 1], [2, 3, 3]])
    assert neighbours(labels).tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]


def test_histograms_by_hand() -> None:
    labels = np.array([[0, 0, 1]])
    values = np.array([[[0.0, 0.9], [0.6, 1.0], [0.4, 0.1]]])
    assert histograms(labels, values, bins=2).tolist() == [[0.25, 0.25, 0, 0.5], [0.5, 0, 0.5, 0]]


def row_of_segments(colours: list[list[float]], sizes: list[int]) -> Segments:
    """Segments of height 10 in a row, with these histograms."""
    ends = np.cumsum([0, *sizes]) // 10
    boxes = np.array([[a, 0, b, 10] for a, b in pairwise(ends)])
    pairs = np.array([[i, i + 1] for i in range(len(sizes) - 1)])
    histogram = np.array(colours)
    return Segments(np.array(sizes), boxes, histogram, np.zeros_like(histogram), pairs)


def test_the_most_similar_are_joined_first_and_histograms_by_size() -> None:
    """Segments 1 and 2 share .9 of their colours, 0 and 1 only .5. Then (3 + 0): the mean weighs 3 to 1."""
    segments = row_of_segments([[1, 0], [0.5, 0.5], [0.4, 0.6]], [100, 300, 100])
    boxes = group(segments, ("colour",), area=500)
    assert boxes.tolist() == [[0, 0, 10, 10], [10, 0, 40, 10], [40, 0, 50, 10], [10, 0, 50, 10], [0, 0, 50, 10]]


def test_small_segments_are_joined_first() -> None:
    segments = row_of_segments([[1], [1], [1], [1]], [300, 100, 100, 300])
    assert group(segments, ("size",), area=800)[4].tolist() == [30, 0, 50, 10]


def test_segments_that_fill_their_box_are_joined_first() -> None:
    """A corner-shaped pair leaves its box empty; a pair side by side fills it."""
    boxes = np.array([[0, 0, 10, 10], [10, 10, 20, 20], [20, 10, 30, 20]])
    pairs = np.array([[0, 1], [1, 2]])
    segments = Segments(np.array([100, 100, 100]), boxes, np.ones((3, 1)), np.ones((3, 1)), pairs)
    assert group(segments, ("fill",), area=900)[3].tolist() == [10, 10, 30, 20]


def test_a_single_segment() -> None:
    segments = row_of_segments([[1.0]], [100])
    segments = Segments(segments.sizes, segments.boxes, segments.colour, segments.texture, np.zeros((0, 2), np.int64))
    assert group(segments, ALL, area=100).tolist() == [[0, 0, 10, 10]]


@pytest.mark.parametrize("space", QUALITY.colour_spaces)
def test_colour_spaces_lie_between_0_and_1(space: ColourSpace) -> None:
    """The eight corners of the colour cube and greys."""
    corners = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)] + [[90, 90, 90]]
    pixels = in_colour_space(np.array([corners], np.uint8), space)
    assert pixels.dtype == np.float32
    assert pixels.shape == (1, 9, 1 if space in ("hue", "intensity") else 3)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    if space == "lab":
        np.testing.assert_allclose(pixels[0, 7], [1, 128 / 255, 128 / 255], atol=0.01)  # white
    if space == "rgi":
        np.testing.assert_allclose(pixels[0, 8], [1 / 3, 1 / 3, 90 / 255], atol=1e-5)


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    rng = np.random.default_rng(0)
    image = flat_picture().repeat(2, axis=0).repeat(2, axis=1)
    return (image + rng.integers(0, 30, image.shape)).clip(0, 255).astype(np.uint8)


def test_proposals_are_different_inside_the_image_and_large_enough(noisy: np.ndarray) -> None:
    boxes = selective_search(noisy, SelectiveSearchConfig())
    assert boxes.dtype == np.float32
    assert len(np.unique(boxes, axis=0)) == len(boxes) > 10
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= [180, 120]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 20).all()


def test_the_same_picture_has_the_same_proposals_and_max_boxes_takes_the_first(noisy: np.ndarray) -> None:
    boxes = selective_search(noisy, SelectiveSearchConfig())
    assert np.array_equal(boxes, selective_search(noisy, SelectiveSearchConfig()))
    assert np.array_equal(boxes[:5], selective_search(noisy, SelectiveSearchConfig(max_boxes=5)))


def test_more_spaces_and_similarities_give_more_proposals(noisy: np.ndarray) -> None:
    fast = {tuple(box) for box in selective_search(noisy, SelectiveSearchConfig()).tolist()}
    quality = {tuple(box) for box in selective_search(noisy, QUALITY).tolist()}
    assert fast < quality


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 40, 3)])
def test_a_picture_smaller_than_a_proposal(shape: tuple[int, int, int]) -> None:
    assert selective_search(np.zeros(shape, np.uint8), SelectiveSearchConfig()).shape == (0, 4)

"""k-means on box shapes, against clusters made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detkit.config import UserError
from detkit.data.anchor_kmeans import kmeans_anchors, mean_iou

CENTRES = np.array([(10, 10), (40, 20), (20, 60), (100, 100)], float)
SPREAD = np.array([(0, 0), (1, 0), (-1, 0), (0, 2), (0, -2), (1, 2), (-1, -2)], float)  # sums to nothing


def clusters() -> np.ndarray:
    """28 shapes around four, in no order."""
    sides = (CENTRES[:, None] + SPREAD).reshape(-1, 2)
    return np.random.default_rng(0).permutation(sides)


@pytest.mark.parametrize("seed", range(5))
def test_clusters_far_apart_are_found_exactly_and_sorted_by_area(seed: int) -> None:
    np.testing.assert_allclose(kmeans_anchors(clusters(), 4, seed), CENTRES, rtol=1e-12)


def test_a_big_box_does_not_outweigh_small_ones() -> None:
    """By IoU 10 and 20 differ as much as 100 and 200; by Euclid's distance the small ones would be one cluster."""
    sides = np.array([(10, 10)] * 5 + [(20, 20)] * 5 + [(190, 190), (200, 200), (210, 210)] * 5, float)
    np.testing.assert_allclose(kmeans_anchors(sides, 3), [(10, 10), (20, 20), (200, 200)], rtol=1e-12)


def test_mean_iou_is_that_of_the_best_anchor() -> None:
    sides = np.array([(10, 10), (10, 20), (30, 10)], float)
    # by hand: 1; 100 / 200 with the first, 200 / 400 with the second; 100 / 300 and 200 / 500
    assert mean_iou(sides, np.array([(10, 10), (20, 20)], float)) == pytest.approx((1 + 1 / 2 + 2 / 5) / 3)
    assert mean_iou(sides, sides) == 1


def test_as_many_anchors_as_shapes_are_the_shapes() -> None:
    sides = np.array([(10, 10), (10, 20), (30, 10), (10, 20)], float)
    np.testing.assert_array_equal(kmeans_anchors(sides, 3), [(10, 10), (10, 20), (30, 10)])


def test_one_anchor_is_at_least_as_good_as_the_mean() -> None:
    sides = np.random.default_rng(0).uniform(5, 200, (200, 2))
    one = kmeans_anchors(sides, 1)
    assert mean_iou(sides, one) >= mean_iou(sides, sides.mean(axis=0, keepdims=True))


def test_the_fit_is_never_below_that_of_the_first_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means are not what 1 - IoU asks for: of wide shapes the last step is worse than the best."""
    sides = np.exp(np.random.default_rng(0).normal(4, 0.8, (2000, 2)))
    final = [mean_iou(sides, kmeans_anchors(sides, k)) for k in (3, 9)]
    monkeypatch.setattr("detkit.data.anchor_kmeans._means", lambda sides, owners, anchors: anchors)
    first = [mean_iou(sides, kmeans_anchors(sides, k)) for k in (3, 9)]
    assert final[0] > first[0]
    assert final[1] > first[1]


def test_more_anchors_fit_better_and_a_seed_repeats_itself() -> None:
    sides = np.exp(np.random.default_rng(0).normal(4, 0.7, (2000, 2)))
    results = [kmeans_anchors(sides, k, seed=3) for k in (1, 2, 5, 9)]
    fits = [mean_iou(sides, anchors) for anchors in results]
    assert fits == sorted(fits)
    for anchors in results:
        assert (np.diff(anchors.prod(axis=1)) > 0).all()
    np.testing.assert_array_equal(results[3], kmeans_anchors(sides, 9, seed=3))


@pytest.mark.parametrize(("count", "k", "distinct"), [(2, 3, 2), (0, 1, 0)])
def test_more_anchors_than_different_shapes(count: int, k: int, distinct: int) -> None:
    sides = np.repeat(np.arange(1.0, count + 1)[:, None], 2, axis=1).repeat(5, axis=0)
    with pytest.raises(UserError, match=f"{k} need as many different box shapes, found {distinct}"):
        kmeans_anchors(sides, k)


def test_no_anchors() -> None:
    with pytest.raises(UserError, match="expected at least 1, found 0"):
        kmeans_anchors(CENTRES, 0)

"""R-CNN's SVMs and box regressors, against plain solutions of the same problems."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from detkit.nn.heads.rcnn_stages import NEVER, BoxRegressionConfig, HardNegativeSVM, SVMConfig, fit_box_regressor


def clouds(positives: int = 60, negatives: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Two clouds that touch; most negatives are far away and easy."""
    rng = np.random.default_rng(0)
    near = rng.normal((1.5, 0, 0), 1, (positives, 3))
    return near.astype(np.float32), rng.normal((-4, 0, 0), 2, (negatives, 3)).astype(np.float32)


def objective(
    weight: np.ndarray, bias: float, positives: np.ndarray, negatives: np.ndarray, config: SVMConfig
) -> float:
    """|w|^2 / 2 + |b / B|^2 / 2 + C (2 sum of the positives' hinges + sum of the negatives')."""
    margins = [features @ weight.astype(np.float64) + bias for features in (positives, negatives)]
    hinges = [np.maximum(0, 1 - margins[0]).sum() * config.positive_weight, np.maximum(0, 1 + margins[1]).sum()]
    return float(
        (weight.astype(np.float64) @ weight + (bias / config.bias_multiplier) ** 2) / 2 + config.c * sum(hinges)
    )


def test_mining_finds_the_svm_of_all_negatives() -> None:
    """Negatives that are left out lie beyond the margin and have no part in the solution; most are left out."""
    config = SVMConfig(c=0.1, retrain_every=300)
    positives, negatives = clouds()
    svm = HardNegativeSVM(config, positives)
    for part in np.array_split(negatives, 40):
        svm.add_negatives(part)
    svm.fit()
    of_all = LinearSVC(
        C=config.c, loss="hinge", dual=True, intercept_scaling=10, class_weight={1: 2.0}, max_iter=100_000, tol=1e-6
    )
    of_all.fit(np.concatenate([positives, negatives]), [1] * len(positives) + [0] * len(negatives))
    best = objective(of_all.coef_[0], of_all.intercept_[0], positives, negatives, config)
    assert objective(svm.weight, svm.bias, positives, negatives, config) == pytest.approx(best, rel=1e-3)
    assert svm.num_negatives < len(negatives) / 3


def test_the_objective_has_the_published_weights() -> None:
    """No step away from the solution lowers it, with the positives' losses doubled and the bias at a tenth."""
    config = SVMConfig(c=0.1)
    positives, negatives = clouds(30, 200)
    svm = HardNegativeSVM(config, positives)
    svm.add_negatives(negatives)
    svm.fit()
    lowest = objective(svm.weight, svm.bias, positives, negatives, config)
    for step in np.eye(4) * 0.05:
        for sign in (-1, 1):
            moved = objective(svm.weight + sign * step[:3], svm.bias + sign * step[3], positives, negatives, config)
            assert moved > lowest


def test_only_hard_negatives_stay_once_there_is_an_svm() -> None:
    svm = HardNegativeSVM(SVMConfig(c=10.0, retrain_every=50), np.full((5, 1), 4, np.float32))
    svm.add_negatives(np.full((49, 1), -4, np.float32))
    assert svm.num_negatives == 49, "all, while there is no SVM"
    assert not svm.fitted
    svm.add_negatives(np.full((1, 1), -4, np.float32))
    assert svm.fitted
    assert svm.margins(np.array([[4.0], [-4.0]])) == pytest.approx([1, -1], abs=0.02)
    svm.add_negatives(np.array([[-8.0], [0.0], [-6.0]], np.float32))
    assert svm.new == 1, "a margin of 0 is above -1.0001; -2 and -1.5 are not"


def test_negatives_that_have_become_easy_are_let_go() -> None:
    svm = HardNegativeSVM(SVMConfig(c=10.0, retrain_every=3), np.full((5, 1), 4, np.float32))
    svm.add_negatives(np.array([[0.0], [-8.0], [-20.0]], np.float32))  # the hyperplane lies between 0 and 4
    assert svm.num_negatives == 1


def test_a_class_without_a_positive_is_never_detected() -> None:
    svm = HardNegativeSVM(SVMConfig(), np.zeros((0, 3), np.float32))
    svm.add_negatives(np.ones((5000, 3), np.float32))
    svm.fit()
    assert svm.num_negatives == 0
    assert (svm.margins(np.random.default_rng(0).normal(size=(9, 3)) * 100) == NEVER).all()


def test_a_class_without_a_negative_stays_undecided() -> None:
    svm = HardNegativeSVM(SVMConfig(), np.ones((4, 3), np.float32))
    svm.fit()
    assert not svm.fitted


# ---- box regressors


def ridge_by_hand(features: np.ndarray, deltas: np.ndarray, alpha: float, eps: float) -> np.ndarray:
    """The regressor's predictions of its own examples: whiten, solve the normal equations, and undo the whitening."""
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    mean = deltas.mean(axis=0)
    values, vectors = np.linalg.eigh((deltas - mean).T @ (deltas - mean) / len(deltas))
    whiten = vectors @ np.diag((values + eps) ** -0.5) @ vectors.T
    gram = features.T @ features + alpha * np.eye(features.shape[1])
    solution = np.linalg.inv(gram) @ features.T @ ((deltas - mean) @ whiten)
    return np.asarray(features @ solution @ np.linalg.inv(whiten) + mean)


@pytest.mark.parametrize(("count", "width"), [(200, 12), (8, 30)])
def test_regressors_solve_the_normal_equations(count: int, width: int) -> None:
    """With more examples than features, and with fewer."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(count, width))
    deltas = features[:, :4] @ rng.normal(size=(4, 4)) * 0.1 + rng.normal(size=(count, 4)) * (0.02, 0.1, 0.2, 0.3) + 0.5
    config = BoxRegressionConfig(alpha=3.0)
    weight, bias = fit_box_regressor(features.astype(np.float32), deltas.astype(np.float32), config)
    expected = ridge_by_hand(features, deltas, 3.0, config.whitening_eps)
    np.testing.assert_allclose(features @ weight.T + bias, expected, atol=1e-5)


def test_a_regressor_without_examples_moves_nothing() -> None:
    weight, bias = fit_box_regressor(np.zeros((0, 7), np.float32), np.zeros((0, 4), np.float32), BoxRegressionConfig())
    assert weight.shape == (4, 7)
    assert not weight.any()
    assert not bias.any()

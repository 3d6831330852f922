"""The SVMs and box regressors that R-CNN fits after its network is trained (Girshick et al., arXiv 1311.2524).

Legend: N regions, F features of one (fc7), D features of one (pool5). Arrays are numpy; nothing here has a gradient.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from detkit.config import Config

NEVER = -1e4  # margin of a class without a single example


class SVMConfig(Config):
    """One linear SVM a class, on fc7 (section 2.3 and appendix B)."""

    c: float = Field(1e-3, gt=0)  # weight of the hinge losses
    positive_weight: float = Field(2.0, gt=0)  # of a positive's loss beside a negative's
    bias_multiplier: float = Field(10.0, gt=0)  # the constant feature, which takes part in the regularisation
    feature_norm: float = Field(20.0, gt=0)  # mean norm that features are scaled to
    negative_threshold: float = Field(0.3, ge=0, le=1)  # IoU with the class below which a region is negative
    retrain_every: int = Field(2000, ge=1)  # new hard negatives
    hard_margin: float = -1.0001  # a negative above it stays in memory
    easy_margin: float = -1.2  # a negative in memory below it is dropped


class BoxRegressionConfig(Config):
    """Ridge regression of the deltas, a class at a time, on pool5 (appendix C)."""

    alpha: float = Field(1000.0, ge=0)  # ridge; the constant feature is regularised too
    feature_norm: float = Field(20.0, gt=0)  # mean norm that features are scaled to
    min_iou: float = Field(0.6, ge=0, le=1)  # with the object, of a region to learn from
    whitening_eps: float = Field(1e-3, ge=0)  # added to the variances of the deltas
    max_examples: int = Field(10_000, ge=1)  # of a class, in memory; the paper takes all


class HardNegativeSVM:
    """The SVM of one class, trained on a stream of negatives of which only hard ones stay in memory.

    positives  float32 `[N, F]`; without any the class is never detected
    """

    def __init__(self, config: SVMConfig, positives: np.ndarray) -> None:
        self.config, self.positives = config, positives
        self.weight, self.bias = np.zeros(positives.shape[1], np.float32), NEVER
        self.negatives: list[np.ndarray] = []
        self.new = 0
        self.fitted = False

    @property
    def num_negatives(self) -> int:
        return sum(map(len, self.negatives))

    def margins(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(features @ self.weight + self.bias)

    def add_negatives(self, candidates: np.ndarray) -> None:
        """Adds the hard ones of negatives `[N, F]`, all while there is no SVM yet, and trains when enough are new."""
        if not len(self.positives):
            return
        if self.fitted:
            candidates = candidates[self.margins(candidates) > self.config.hard_margin]
        if len(candidates):
            self.negatives.append(candidates)
            self.new += len(candidates)
        if self.new >= self.config.retrain_every:
            self.fit()

    def fit(self) -> None:
        """Trains on the positives and the negatives in memory, and drops easy negatives."""
        if not len(self.positives) or not self.negatives or (self.fitted and not self.new):
            return
        from sklearn.svm import LinearSVC

        config, negatives = self.config, np.concatenate(self.negatives)
        solver = LinearSVC(
            C=config.c,
            loss="hinge",
            dual=True,
            intercept_scaling=config.bias_multiplier,
            class_weight={1: config.positive_weight},
            max_iter=20_000,
            random_state=0,
        )
        labels = np.repeat([1, 0], [len(self.positives), len(negatives)])
        solver.fit(np.concatenate([self.positives, negatives]), labels)
        self.weight, self.bias = solver.coef_[0].astype(np.float32), float(solver.intercept_[0])
        self.negatives = [negatives[self.margins(negatives) >= config.easy_margin]]
        self.new, self.fitted = 0, True


def fit_box_regressor(
    features: np.ndarray, deltas: np.ndarray, config: BoxRegressionConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Weight `[4, D]` and bias `[4]` that give deltas `[N, 4]` from features `[N, D]`; zeros without an example.

    The deltas are centred and whitened before the regression (appendix C's code), and that is undone in the result.
    """
    if not len(features):
        return np.zeros((4, features.shape[1]), np.float32), np.zeros(4, np.float32)
    from sklearn.linear_model import Ridge

    mean = deltas.mean(axis=0, dtype=np.float64)
    centred = deltas - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(deltas))
    sides = np.sqrt(variances.clip(min=0) + config.whitening_eps)
    whiten, colour = directions / sides @ directions.T, directions * sides @ directions.T
    constant = np.ones((len(features), 1), features.dtype)
    ridge = Ridge(config.alpha, fit_intercept=False, solver="cholesky")
    ridge.fit(np.concatenate([features, constant], axis=1, dtype=np.float64), centred @ whiten)
    weight = colour @ ridge.coef_  # [4, D + 1]; colour is symmetric
    return weight[:, :-1].astype(np.float32), (weight[:, -1] + mean).astype(np.float32)

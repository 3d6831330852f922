"""Class-balanced sampling: images of rare classes come more often (repeat factors; LVIS, arXiv 1908.03195).

Legend: I images, K classes.
"""

from __future__ import annotations

import numpy as np

from detkit.data.dataset import ImageDataset

MAX_CLASSES_LISTED = 20


def repeat_factors(dataset: ImageDataset, threshold: float) -> np.ndarray:
    """float64 `[I]`, at least 1: how often each image comes in an epoch, on average.

    f_c is the share of the images that show class c, ignored objects not counted. A class has the factor
    max(1, sqrt(threshold / f_c)), an image the largest factor of its classes, and 1 if it has none.
    """
    factors = np.ones(len(dataset))
    images, labels = _images_with_class(dataset)
    np.maximum.at(factors, images, _class_factors(dataset, threshold)[labels])
    return factors


def describe_repeats(dataset: ImageDataset, threshold: float) -> str:
    """One line for the log: the classes that come more often, each with its images and its factor, rarest first."""
    factors = _class_factors(dataset, threshold)
    counts = _images_of_class(dataset)
    raised = [c for c in np.argsort(-factors, kind="stable").tolist() if factors[c] > 1]
    total = float(repeat_factors(dataset, threshold).sum())
    listed = [f"{dataset.categories.names[c]} (in {counts[c]:,}) x {factors[c]:.2f}" for c in raised]
    if len(listed) > MAX_CLASSES_LISTED:
        listed = [*listed[:MAX_CLASSES_LISTED], f"{len(listed) - MAX_CLASSES_LISTED} more classes less often"]
    classes = ", ".join(listed) or "no class is rarer"
    return (
        f"loader.repeat_threshold {threshold:g} of {len(dataset):,} images: {classes}; an epoch has about {total:,.0f}"
    )


def _images_with_class(dataset: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """(image, label) of each class that an image shows, once however many objects it has there."""
    shown = ~dataset.objects.ignore
    pairs = np.stack([dataset.image_of_object[shown], dataset.objects.labels[shown]], axis=1)
    images, labels = np.unique(pairs, axis=0).T
    return images, labels


def _images_of_class(dataset: ImageDataset) -> np.ndarray:
    """int64 `[K]`: images that show each class."""
    return np.bincount(_images_with_class(dataset)[1], minlength=len(dataset.categories))


def _class_factors(dataset: ImageDataset, threshold: float) -> np.ndarray:
    """float64 `[K]`; 1 for a class that no image shows."""
    counts = _images_of_class(dataset)
    share = np.where(counts > 0, counts / max(len(dataset), 1), 1)
    return np.maximum(1, np.sqrt(threshold / share))

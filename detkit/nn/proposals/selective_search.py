"""Selective search (Uijlings, van de Sande, Gevers, Smeulders, "Selective Search for Object Recognition", IJCV 2013).

Segments of an image are joined, the most similar neighbours first, until one is left. The boxes of the first segments
and of all unions are the proposals. Several colour spaces, similarities and first segmentations make them diverse.

Legend: H x W pixels, C channels, R first segments, 2 R - 1 with their unions, F features, N boxes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field

from detkit.config import Config

ColourSpace = Literal["hsv", "lab", "rgi", "hue", "intensity"]
Similarity = Literal["colour", "texture", "size", "fill"]

COLOUR_BINS, TEXTURE_BINS = 25, 10  # of each channel; of each channel and direction
LAB_RANGE, LAB_OFFSET = np.array([100, 255, 255], np.float32), np.array([0, 128 / 255, 128 / 255], np.float32)
SIGMA = 0.8  # px, smoothing before the segmentation
ALL: tuple[Similarity, ...] = ("colour", "texture", "size", "fill")


class SelectiveSearchConfig(Config):
    """Defaults: "fast" (section 5.2, table 5), with R-CNN's smallest side."""

    at_test: ClassVar[tuple[str, ...]] = ("*",)

    name: Literal["selective_search"] = "selective_search"
    colour_spaces: tuple[ColourSpace, ...] = Field(("hsv", "lab"), min_length=1)
    scales: tuple[float, ...] = Field(
        (50.0, 100.0), min_length=1
    )  # k of the segmentation, and its smallest segment in px
    similarities: tuple[tuple[Similarity, ...], ...] = Field((ALL, ("texture", "size", "fill")), min_length=1)
    min_side: int = Field(20, ge=1)  # px
    max_boxes: int | None = Field(None, ge=1)  # of an image, the first in the order; null: all


QUALITY = SelectiveSearchConfig(
    colour_spaces=("hsv", "lab", "rgi", "hue", "intensity"),
    scales=(50.0, 100.0, 150.0, 300.0),
    similarities=(ALL, ("texture", "size", "fill"), ("fill",), ("size",)),
)


def selective_search(image: np.ndarray, config: SelectiveSearchConfig) -> np.ndarray:
    """Boxes float32 `[N, 4]` xyxy of an image uint8 `[H, W, 3]` RGB, no two alike, those likely to be objects first.

    The order is that of section 4.3: the rank of a box in its hierarchy, the whole image being first, times a random
    number, which is the same for the same image.
    """
    rng = np.random.default_rng(0)
    boxes, priorities = [], []
    for space in config.colour_spaces:
        pixels = in_colour_space(image, space)
        for scale in config.scales:
            segments = first_segments(pixels, scale)
            for similarities in config.similarities:
                hierarchy = group(segments, similarities, image.shape[0] * image.shape[1])[::-1]
                boxes.append(hierarchy)
                priorities.append(rng.random(len(hierarchy)) * np.arange(1, len(hierarchy) + 1))
    ordered = np.concatenate(boxes)[np.argsort(np.concatenate(priorities), kind="stable")]
    first = np.sort(np.unique(ordered, axis=0, return_index=True)[1])  # of boxes that are alike
    ordered = ordered[first]
    large = (ordered[:, 2:] - ordered[:, :2] >= config.min_side).all(axis=1)
    return np.asarray(ordered[large][: config.max_boxes], np.float32)


def in_colour_space(image: np.ndarray, space: ColourSpace) -> np.ndarray:
    """uint8 `[H, W, 3]` RGB -> float32 `[H, W, C]` in [0, 1]."""
    rgb = image.astype(np.float32) / 255
    pixels: np.ndarray
    match space:
        case "hsv":
            pixels = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV) / np.array([360, 1, 1], np.float32)
        case "lab":
            pixels = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB) / LAB_RANGE + LAB_OFFSET
        case "rgi":
            total = rgb.sum(axis=2, keepdims=True)
            pixels = np.concatenate([rgb[..., :2] / np.maximum(total, 1e-6), total / 3], axis=2)
        case "hue":
            pixels = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., :1] / 360
        case "intensity":
            pixels = rgb.mean(axis=2, keepdims=True)
    return np.ascontiguousarray(pixels.clip(0, 1), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Segments:
    """
    sizes    int64 `[R]`, px
    boxes    int64 `[R, 4]` xyxy
    colour   float64 `[R, F]`, histograms that sum to 1
    texture  float64 `[R, F]`, histograms that sum to 1
    pairs    int64 `[P, 2]`, neighbours, lower number first
    """

    sizes: np.ndarray
    boxes: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    pairs: np.ndarray


def first_segments(pixels: np.ndarray, scale: float) -> Segments:
    """Felzenszwalb and Huttenlocher's segments (IJCV 2004) of `pixels` `[H, W, C]`, with their features."""
    from scipy.ndimage import find_objects
    from skimage.segmentation import felzenszwalb

    labels = felzenszwalb(pixels, scale=scale, sigma=SIGMA, min_size=int(scale), channel_axis=2)
    count = int(labels.max()) + 1
    extents = find_objects(labels + 1)
    corners = np.array([(x.start, y.start, x.stop, y.stop) for y, x in extents], np.int64)
    return Segments(
        np.bincount(labels.ravel(), minlength=count),
        corners,
        histograms(labels, pixels, COLOUR_BINS),
        histograms(labels, directions(pixels), TEXTURE_BINS),
        neighbours(labels),
    )


def directions(pixels: np.ndarray) -> np.ndarray:
    """Derivatives of a Gaussian of 1 px in eight directions, of every channel: `[H, W, 8 C]` in [0, 1]."""
    from scipy.ndimage import gaussian_filter1d

    down, right = (
        gaussian_filter1d(gaussian_filter1d(pixels, 1.0, axis=axis, order=1), 1.0, axis=1 - axis) for axis in (0, 1)
    )
    angles = np.arange(4) * np.pi / 4
    along = np.concatenate([np.cos(angle) * right + np.sin(angle) * down for angle in angles], axis=2)
    both = np.concatenate([along.clip(min=0), (-along).clip(min=0)], axis=2)
    highest: np.ndarray = both.max(axis=(0, 1))
    return np.asarray(both / np.maximum(highest, 1e-9))


def histograms(labels: np.ndarray, values: np.ndarray, bins: int) -> np.ndarray:
    """`[R, F]`: of each segment, `bins` for each channel of `values` `[H, W, F / bins]` in [0, 1]; the sum is 1."""
    count, channels = int(labels.max()) + 1, values.shape[2]
    indices = np.minimum((values * bins).astype(np.int64), bins - 1) + bins * np.arange(channels)
    flat = indices.reshape(-1, channels) + (labels.reshape(-1, 1) * (bins * channels))
    counts = np.bincount(flat.ravel(), minlength=count * bins * channels).reshape(count, -1).astype(np.float64)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def neighbours(labels: np.ndarray) -> np.ndarray:
    """`[P, 2]`: segments that touch at a side of a pixel, each pair once."""
    touching = [
        np.stack([a.ravel(), b.ravel()], axis=1)
        for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1]))
    ]
    pairs = np.sort(np.concatenate(touching), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def group(segments: Segments, similarities: tuple[Similarity, ...], area: int) -> np.ndarray:
    """Boxes int64 `[2 R - 1, 4]`: of the first segments, then of each union in the order of joining (algorithm 1).

    area  px^2 of the image
    """
    hierarchy = _Hierarchy(segments, similarities, area)
    num_first, total = len(segments.sizes), len(hierarchy.sizes)
    adjacent: list[set[int]] = [set() for _ in range(total)]
    for one, other in segments.pairs.tolist():
        adjacent[one].add(other)
        adjacent[other].add(one)
    ones, others = segments.pairs.T
    queue = list(zip((-hierarchy.similarity(ones, others)).tolist(), ones.tolist(), others.tolist(), strict=True))
    heapq.heapify(queue)
    joined = [False] * total
    union = num_first
    while union < total:
        _, one, other = heapq.heappop(queue)
        if joined[one] or joined[other]:
            continue
        joined[one] = joined[other] = True
        hierarchy.join(one, other, union)
        adjacent[union] = (adjacent[one] | adjacent[other]) - {one, other}
        for neighbour in adjacent[union]:
            adjacent[neighbour] -= {one, other}
            adjacent[neighbour].add(union)
        if adjacent[union]:
            near = np.fromiter(adjacent[union], np.int64)
            for value, neighbour in zip(hierarchy.similarity(union, near).tolist(), near.tolist(), strict=True):
                heapq.heappush(queue, (-value, neighbour, union))
        union += 1
    return hierarchy.boxes


class _Hierarchy:
    """Sizes `[2 R - 1]`, boxes `[2 R - 1, 4]` and features `[2 R - 1, F]` of the first segments and their unions."""

    def __init__(self, segments: Segments, similarities: tuple[Similarity, ...], area: int) -> None:
        self.similarities, self.area = similarities, area
        num_first = len(segments.sizes)
        num_unions = num_first - 1
        used = [getattr(segments, name) for name in ("colour", "texture") if name in similarities]
        features = np.concatenate(used, axis=1) if used else np.zeros((num_first, 0))
        self.features = np.concatenate([features, np.zeros((num_unions, features.shape[1]))])
        self.sizes = np.concatenate([segments.sizes, np.zeros(num_unions, np.int64)])
        self.boxes = np.concatenate([segments.boxes, np.zeros((num_unions, 4), np.int64)])

    def similarity(self, one: np.ndarray | int, others: np.ndarray) -> np.ndarray:
        """Section 3.2; the intersections of all histograms are one sum."""
        result = np.minimum(self.features[one], self.features[others]).sum(axis=1)
        size = self.sizes[one] + self.sizes[others]
        if "size" in self.similarities:
            result = result + 1 - size / self.area
        if "fill" in self.similarities:
            boxes1, boxes2 = self.boxes[one], self.boxes[others]
            sides = np.maximum(boxes1[..., 2:], boxes2[:, 2:]) - np.minimum(boxes1[..., :2], boxes2[:, :2])
            result = result + 1 - (sides.prod(axis=1) - size) / self.area
        return np.asarray(result)

    def join(self, one: int, other: int, union: int) -> None:
        """Computes the row `union` from two others."""
        sizes, boxes, features = self.sizes, self.boxes, self.features
        sizes[union] = sizes[one] + sizes[other]
        boxes[union, :2] = np.minimum(boxes[one, :2], boxes[other, :2])
        boxes[union, 2:] = np.maximum(boxes[one, 2:], boxes[other, 2:])
        features[union] = (sizes[one] * features[one] + sizes[other] * features[other]) / sizes[union]

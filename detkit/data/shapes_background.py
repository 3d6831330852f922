"""The parts of a picture of the built-in data set that are no object: background, clutter, blur and noise."""

from __future__ import annotations

import math

import cv2
import numpy as np

from detkit.structures import Size


def draw_background(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Uint8 `[H, W, 3]`: a dull colour, with slow patches of others, and sometimes faint stripes."""
    base = rng.uniform(50, 205) + rng.normal(0, 14, 3)
    patches = (rng.integers(2, 7), rng.integers(2, 7))
    grid = base + rng.normal(0, 14, (*patches, 1)) + rng.normal(0, 8, (*patches, 3))
    image = cv2.resize(grid.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.35:
        ys, xs = np.mgrid[: size[0], : size[1]].astype(np.float32)
        angle, period = rng.uniform(0, math.pi), rng.uniform(5, 60)
        wave = np.sin((xs * math.cos(angle) + ys * math.sin(angle)) * 2 * math.pi / period)
        image += wave[..., None] * rng.normal(0, 9, 3).astype(np.float32)
    return to_pixels(image)


def draw_clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    """Things that are of no class: lines, open arcs, soft blobs, writing."""
    height, width = image.shape[:2]
    x, y = int(rng.integers(width)), int(rng.integers(height))
    colour = np.clip(image[y, x] + rng.normal(0, 55, 3), 0, 255)
    thickness = int(rng.integers(1, 4))
    kind = rng.choice(["stroke", "arc", "blob", "writing"])
    if kind == "stroke":
        draw_stroke(rng, image, thickness)
    elif kind == "arc":
        axes, start = rng.integers(10, 70, 2).tolist(), int(rng.integers(360))
        end = start + int(rng.integers(40, 200))
        cv2.ellipse(image, (x, y), axes, 0, start, end, colour.tolist(), thickness, cv2.LINE_AA)
    elif kind == "blob":
        angles = np.sort(rng.uniform(0, 2 * math.pi, 9))
        reach = rng.uniform(8, 45) * rng.uniform(0.4, 1.0, (9, 1))
        outline = np.stack([np.cos(angles), np.sin(angles)], 1) * reach + (x, y)
        cover = cv2.fillPoly(np.zeros((height, width), np.float32), [outline.astype(np.int32)], 0.7)
        cover = cv2.blur(cv2.blur(cover, (11, 11)), (11, 11))[..., None]
        image[:] = image + cover * (colour - image)
    else:
        side = int(rng.integers(5, 15))
        for letter in range(rng.integers(3, 8)):
            corners = rng.integers(0, side, (4, 2)) + np.array([x + letter * (side + 3), y])
            cv2.polylines(image, [corners.astype(np.int32)], False, colour.tolist(), 1, cv2.LINE_AA)


def draw_stroke(rng: np.random.Generator, image: np.ndarray, thickness: int) -> None:
    height, width = image.shape[:2]
    points = rng.integers(0, (width, height), (int(rng.integers(2, 5)), 2)).astype(np.int32)
    cv2.polylines(image, [points], False, rng.uniform(0, 255, 3).tolist(), thickness, cv2.LINE_AA)


def degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A little blur, noise and a change of light; uint8."""
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0))
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1, 8))
    return to_pixels(image * rng.uniform(0.85, 1.1) + noise)


def to_pixels(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(values, 0, 255), np.uint8)

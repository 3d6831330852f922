"""Draws one picture of the built-in data set: coloured shapes on a cluttered background.

Every random decision comes from the numpy Generator that is passed in. Masks are drawn at twice the size and averaged
down, so edges are smooth. Boxes are tight around the pixels that a shape covers by at least half.

Legend: H x W pixels of the picture, S x S pixels of a patch that holds one whole shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from detkit.data.shapes_background import degrade, draw_background, draw_clutter, draw_stroke, to_pixels
from detkit.structures import Size

CLASS_NAMES = ("circle", "cross", "rectangle", "ring", "star", "triangle")
# A circle has no corner and no side of its own. So the points follow the picture's axes: the centroids of the shape's
# pixels in the upper, right, lower and left quarter of its box, and the centre of the box. A shape that turns a little
# moves them a little; the topmost pixel of a flat side would jump from one of its ends to the other.
KEYPOINT_NAMES = ("top", "right", "bottom", "left", "centre")
SKELETON = ((0, 4), (1, 4), (2, 4), (3, 4))
DIFFICULT_BELOW = 0.35  # visible fraction under which an object is `difficult`
HIDDEN_BELOW = 0.15  # visible fraction under which an object is taken out of the picture

SUPERSAMPLE = 2
SIZES = (8.0, 160.0)  # px, longest side of a shape; its logarithm is triangular, so the extremes are rarer
TILT = math.radians(40)  # largest rotation
OVERLAP = 0.15  # share of objects that may cover much of another
OWN_HUE = 0.95  # share of objects in the hue of their class, as real classes have their colours
FADE = 0.06  # share of objects whose colour may come close to the background's


@dataclass(frozen=True, eq=False)
class DrawnObject:
    """One annotated shape. Its box is around all of it that lies inside the picture, hidden parts too.

    visible    visible pixels / pixels of the whole shape, outside the picture too
    mask       bool `[h, w]` in the box: the visible pixels
    keypoints  float32 `[5, 3]`: x, y in continuous px and visibility, 1 where another object hides the point, else 2
    """

    label: int
    box: tuple[int, int, int, int]  # xyxy
    visible: float
    mask: np.ndarray
    keypoints: np.ndarray

    @property
    def area(self) -> int:
        """px^2, visible"""
        return int(self.mask.sum())

    @property
    def difficult(self) -> bool:
        return self.visible < DIFFICULT_BELOW


@dataclass(frozen=True, eq=False)
class _Shape:
    label: int
    mask: np.ndarray  # float32 [S, S] in [0, 1]
    left: int  # of the patch, may be negative
    top: int


def draw_picture(rng: np.random.Generator) -> tuple[np.ndarray, list[DrawnObject]]:
    """A uint8 `[H, W, 3]` picture and its objects, in drawing order."""
    size = (int(rng.integers(208, 273)), int(rng.integers(288, 353)))
    if rng.random() < 0.4:
        size = size[::-1]
    image = draw_background(rng, size)
    for _ in range(rng.integers(2, 8)):
        draw_clutter(rng, image)
    shapes, objects = _arrange(rng, size)
    for shape in shapes:
        _paint(rng, image, shape)
    for _ in range(rng.integers(0, 3)):
        draw_stroke(rng, image, thickness=1)
    return degrade(rng, image), objects


def _arrange(rng: np.random.Generator, size: Size) -> tuple[list[_Shape], list[DrawnObject]]:
    """Shapes in drawing order with their annotations, without those that would be hidden."""
    low, high = map(math.log, SIZES)
    sides = np.exp(rng.triangular(low, (low + high) / 2, high, rng.integers(3, 11)))
    shapes: list[_Shape] = []
    boxes: list[tuple[int, int, int, int]] = []
    for side in sorted(sides, key=lambda s: -s * rng.uniform(0.5, 2.0)):  # mostly the small ones on top
        label = int(rng.integers(len(CLASS_NAMES)))
        mask = shape_mask(rng, label, float(side))
        allowed = 0.9 if rng.random() < OVERLAP else 0.2
        for _ in range(8):
            shape = _Shape(label, mask, *_draw_corner(rng, size, mask.shape[0], float(side)))
            box = tight_box(_on_canvas(shape, size))
            if box is not None and all(_overlap(box, other) < allowed for other in boxes):
                break
        if box is not None:
            shapes.append(shape)
            boxes.append(box)
    while True:
        topmost = np.full(size, -1, np.int8)  # [H, W]: the shape that shows at each pixel
        covers = [_on_canvas(shape, size) for shape in shapes]
        for index, cover in enumerate(covers):
            topmost[cover] = index
        shown = [int((topmost == index).sum()) for index in range(len(shapes))]
        visible = [n / max(int((shape.mask >= 0.5).sum()), 1) for n, shape in zip(shown, shapes, strict=True)]
        hidden = [index for index, fraction in enumerate(visible) if fraction < HIDDEN_BELOW]
        if not hidden:
            break
        del shapes[hidden[0]]
    rows = enumerate(zip(shapes, covers, visible, strict=True))
    return shapes, [_annotate(shape.label, cover, fraction, topmost, index) for index, (shape, cover, fraction) in rows]


def _annotate(label: int, cover: np.ndarray, visible: float, topmost: np.ndarray, index: int) -> DrawnObject:
    """The object that covers pixels, bool `[H, W]`; `topmost[y, x]` is the number of the one that shows there."""
    box = tight_box(cover)
    assert box is not None
    x1, y1, x2, y2 = box
    mask = topmost[y1:y2, x1:x2] == index
    return DrawnObject(label, box, visible, mask, _keypoints(cover, box, topmost > index))


def _keypoints(cover: np.ndarray, box: tuple[int, int, int, int], hidden: np.ndarray) -> np.ndarray:
    """See `DrawnObject`; `cover` and `hidden`, bool `[H, W]`, are the pixels of the shape and those in front of it."""
    x1, y1, x2, y2 = box
    ys, xs = np.nonzero(cover[y1:y2, x1:x2])
    pixels = np.stack([xs, ys], 1) + np.array([x1 + 0.5, y1 + 0.5])
    deep, wide = math.ceil((y2 - y1) / 4), math.ceil((x2 - x1) / 4)
    quarters = (ys < deep, xs >= x2 - x1 - wide, ys >= y2 - y1 - deep, xs < wide)
    centre = ((x1 + x2) / 2, (y1 + y2) / 2)
    points = np.array([*(pixels[quarter].mean(axis=0) for quarter in quarters), centre], np.float32)
    columns, rows = points.astype(np.int64).T
    return np.column_stack([points, np.where(hidden[rows, columns], 1, 2)]).astype(np.float32)


def _draw_corner(rng: np.random.Generator, size: Size, patch: int, side: float) -> tuple[int, int]:
    """A random (left, top) of a patch: the shape's centre is inside the picture or just outside."""
    margin = 0.1 * side
    cx, cy = (rng.uniform(-margin, extent + margin) for extent in (size[1], size[0]))
    return round(cx - patch / 2), round(cy - patch / 2)


def shape_mask(rng: np.random.Generator, label: int, side: float) -> np.ndarray:
    """Float32 `[S, S]`: how much of each pixel the shape covers; S leaves a border of at least one pixel."""
    patch = math.ceil(side) + 4
    squash = _turn(rng.uniform(0, 2 * math.pi))  # a little along any axis
    stretch = squash @ np.diag([1.0, rng.uniform(0.8, 1.0)]) @ squash.T @ _turn(rng.uniform(-TILT, TILT))
    outlines = [outline @ stretch for outline in _outlines(rng, CLASS_NAMES[label])]
    radius = np.ptp(outlines[0], axis=0).max() / 2
    centre = (outlines[0].max(axis=0) + outlines[0].min(axis=0)) / 2
    canvas = np.zeros((patch * SUPERSAMPLE, patch * SUPERSAMPLE), np.uint8)
    for outline, value in zip(outlines, (255, 0), strict=False):
        pixels = (outline - centre) / radius * side / 2 + patch / 2
        fixed_point = np.round((pixels * SUPERSAMPLE - 0.5) * 16).astype(np.int32)  # 4 fractional bits
        cv2.fillPoly(canvas, [fixed_point], value, cv2.LINE_AA, shift=4)
    return cv2.resize(canvas, (patch, patch), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _turn(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _outlines(rng: np.random.Generator, name: str) -> list[np.ndarray]:
    """The outline `[P, 2]` of a class in a unit circle, and for a ring that of its hole."""
    if name == "circle":
        return [_round(1.0)]
    if name == "ring":
        return [_round(1.0), _round(rng.uniform(0.45, 0.68))]
    if name == "rectangle":
        half = rng.uniform(0.4, 1.0)
        return [np.array([[-1, -half], [1, -half], [1, half], [-1, half]])]
    if name == "triangle":
        corners = np.arange(3) * 2 * math.pi / 3 + rng.uniform(-0.25, 0.25, 3)
        return [np.stack([np.cos(corners), np.sin(corners)], 1)]
    if name == "star":
        corners = np.arange(10) * math.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.36, 0.5))
        return [np.stack([np.cos(corners), np.sin(corners)], 1) * radii[:, None]]
    arm = rng.uniform(0.22, 0.36)  # cross
    quarter = np.array([[1, -arm], [1, arm], [arm, arm]])
    return [np.concatenate([quarter @ _turn(-k * math.pi / 2) for k in range(4)])]


def _round(radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _on_canvas(shape: _Shape, size: Size) -> np.ndarray:
    """Bool `[H, W]`: the pixels of the picture that the shape covers by at least half."""
    canvas = np.zeros(size, np.bool_)
    rows, columns, patch_rows, patch_columns = _window(shape, size)
    canvas[rows, columns] = shape.mask[patch_rows, patch_columns] >= 0.5
    return canvas


def _window(shape: _Shape, size: Size) -> tuple[slice, slice, slice, slice]:
    """The part of the picture under the patch, and the same part of the patch."""
    patch = shape.mask.shape[0]
    top, bottom = (min(max(y, 0), size[0]) for y in (shape.top, shape.top + patch))
    left, right = (min(max(x, 0), size[1]) for x in (shape.left, shape.left + patch))
    return (
        slice(top, bottom),
        slice(left, right),
        slice(top - shape.top, bottom - shape.top),
        slice(left - shape.left, right - shape.left),
    )


def tight_box(cover: np.ndarray) -> tuple[int, int, int, int] | None:
    rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _overlap(box1: tuple[int, int, int, int], box2: tuple[int, int, int, int]) -> float:
    """Intersection over the smaller of two boxes."""
    width = min(box1[2], box2[2]) - max(box1[0], box2[0])
    height = min(box1[3], box2[3]) - max(box1[1], box2[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (box1, box2))
    return max(width, 0) * max(height, 0) / smaller


def _paint(rng: np.random.Generator, image: np.ndarray, shape: _Shape) -> None:
    """Blends a textured shape into the picture, in a colour that mostly stands out from what is there."""
    rows, columns, patch_rows, patch_columns = _window(shape, (image.shape[0], image.shape[1]))
    under = image[rows, columns].astype(np.float32)
    backdrop = under.reshape(-1, 3).mean(axis=0)
    distance = 45.0 if rng.random() < FADE else 110.0
    colour = colour_away_from(rng, backdrop, distance, shape.label)
    second = (
        colour * rng.uniform(0.55, 0.9) if rng.random() < 0.5 else colour + (255 - colour) * rng.uniform(0.15, 0.45)
    )
    if np.linalg.norm(second - backdrop) < 0.6 * distance:
        second = 0.6 * colour + 0.4 * second
    texture = draw_texture(rng, shape.mask.shape[0], colour, second)[patch_rows, patch_columns]
    alpha = shape.mask[patch_rows, patch_columns, None]
    image[rows, columns] = to_pixels(under + alpha * (texture - under))


def colour_away_from(rng: np.random.Generator, backdrop: np.ndarray, distance: float, label: int) -> np.ndarray:
    """The first of some colours, random or mostly of the class's hue, that is far enough away, or else the farthest."""
    colours = rng.uniform(0, 255, (24, 3))
    if rng.random() < OWN_HUE:
        hues = (label / len(CLASS_NAMES) + rng.normal(0, 0.04, 24)) % 1
        hsv = np.stack([hues * 360, rng.uniform(0.4, 1, 24), rng.uniform(0.35, 1, 24)], 1).astype(np.float32)
        colours = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0].astype(np.float64) * 255
    distances = np.linalg.norm(colours - backdrop, axis=1)
    colour: np.ndarray = colours[np.argmax(np.minimum(distances, distance))]
    return colour


def draw_texture(rng: np.random.Generator, side: int, colour: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Float32 `[S, S, 3]`: flat, gradient, stripes, dots or checks of two colours."""
    ys, xs = np.mgrid[:side, :side].astype(np.float32)
    angle, period = rng.uniform(0, math.pi), max(4.0, side * rng.uniform(0.12, 0.35))
    along, across = xs * math.cos(angle) + ys * math.sin(angle), ys * math.cos(angle) - xs * math.sin(angle)
    waves = np.sin(along * 2 * math.pi / period), np.sin(across * 2 * math.pi / period)
    kind = rng.choice(["flat", "gradient", "stripes", "dots", "checks"], p=[0.4, 0.2, 0.2, 0.1, 0.1])
    if kind == "flat":
        mix = np.zeros_like(xs)
    elif kind == "gradient":
        mix = (along - along.min()) / max(float(np.ptp(along)), 1.0)
    elif kind == "stripes":
        mix = _soft_step(waves[0])
    elif kind == "dots":
        mix = _soft_step(waves[0] + waves[1] - 0.9)
    else:
        mix = _soft_step(waves[0] * waves[1])
    return np.asarray(colour + mix[..., None] * (second - colour), np.float32)


def _soft_step(values: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 2.5 * values, 0, 1)

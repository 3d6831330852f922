"""Draws one clip of the built-in moving shapes, whose classes are motions that no single frame shows.

Every random decision comes from the numpy Generator that is passed in. Shape, colour, position, size and angle in the
middle frame are drawn before the class and without it. A horizontal flip turns left into right, and a clip that runs
backwards shows the opposite motion.

Legend: T frames of H x W pixels, S x S pixels of a patch that holds one whole shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from detkit.data.shapes_background import degrade, draw_background, draw_clutter, to_pixels
from detkit.data.shapes_drawing import CLASS_NAMES as SHAPE_NAMES
from detkit.data.shapes_drawing import colour_away_from, draw_texture, shape_mask, tight_box

# Of each class: the direction of x, y, the logarithm of the size, and the angle. Clockwise is as one looks at it.
MOTIONS = {
    "down": (0, 1, 0, 0),
    "grow": (0, 0, 1, 0),
    "left": (-1, 0, 0, 0),
    "right": (1, 0, 0, 0),
    "shrink": (0, 0, -1, 0),
    "spin_anticlockwise": (0, 0, 0, -1),
    "spin_clockwise": (0, 0, 0, 1),
    "up": (0, -1, 0, 0),
}
CLASS_NAMES = tuple(MOTIONS)
SIZE = (120, 160)  # (h, w)
NUM_FRAMES = (16, 24)
NUM_OBJECTS = (1, 3)
SHAPES = ("cross", "rectangle", "star", "triangle")  # a circle would not show that it spins
SIDES = (18.0, 36.0)  # px, longest side in the middle frame, before the shape is turned
SPEED = (1.0, 2.2)  # px a frame
GROWTH = (0.02, 0.04)  # of the logarithm of the side, a frame
SPIN = (math.radians(4), math.radians(9))  # a frame
MARGIN = 28.0  # px, of centres in the middle frame to the border: 12 frames later they are still inside
PATCH_SIDE = 48.0  # px, longest side of a shape in its patch


@dataclass(frozen=True, eq=False)
class MovingObject:
    """One annotated shape, which is there in all frames.

    boxes  float32 `[T, 4]` xyxy, around all of it that lies inside the picture, hidden parts too
    """

    label: int
    track_id: int
    boxes: np.ndarray


@dataclass(frozen=True, eq=False)
class DrawnClip:
    """frames  uint8 `[T, H, W, 3]` RGB; objects in drawing order"""

    frames: np.ndarray
    objects: tuple[MovingObject, ...]


@dataclass(frozen=True, eq=False)
class _Actor:
    """A shape, where it is in the middle frame, and how it moves.

    mask     float32 `[S, S]` in [0, 1]
    texture  float32 `[S, S, 3]`
    centre   float64 `[2]`: x and y of the centroid in the patch, in indices of pixels; the shape turns around it
    pose     float64 `[4]`: x and y of the centroid in px, logarithm of the longest side in px, angle
    rate     float64 `[4]`: what is added to the pose a frame
    """

    mask: np.ndarray
    centre: np.ndarray
    texture: np.ndarray
    pose: np.ndarray
    label: int
    rate: np.ndarray


def draw_clip(rng: np.random.Generator, num_frames: int | None = None) -> DrawnClip:
    """A clip of one to three moving shapes on a background that stands still.

    num_frames  None: 16 to 24
    """
    count = num_frames or int(rng.integers(NUM_FRAMES[0], NUM_FRAMES[1] + 1))
    background = draw_background(rng, SIZE)
    for _ in range(rng.integers(2, 6)):
        draw_clutter(rng, background)
    actors = [_draw_actor(rng, background, pose) for pose in _draw_poses(rng)]
    camera_seed = int(rng.integers(2**32))  # the same blur, light and noise in every frame
    frames, boxes = [], []
    for step in range(count):
        frame = background.copy()
        boxes.append([_paint(frame, actor, step - count // 2) for actor in actors])
        frames.append(degrade(np.random.default_rng(camera_seed), frame))
    tracks = np.array(boxes, np.float32).transpose(1, 0, 2)
    objects = [MovingObject(actor.label, number, tracks[number]) for number, actor in enumerate(actors)]
    return DrawnClip(np.stack(frames), tuple(objects))


def _draw_poses(rng: np.random.Generator) -> list[np.ndarray]:
    """Of the middle frame, see `_Actor`: centres that are apart by most of the mean side, or fewer of them."""
    poses: list[np.ndarray] = []
    low, high = np.array([MARGIN, MARGIN]), np.array([SIZE[1] - MARGIN, SIZE[0] - MARGIN])
    for _ in range(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1)):
        log_side, angle = rng.uniform(*np.log(SIDES)), rng.uniform(0, 2 * math.pi)
        for _ in range(20):
            pose = np.array([*rng.uniform(low, high), log_side, angle])
            gaps = [math.dist(pose[:2], other[:2]) - 0.4 * np.exp([log_side, other[2]]).sum() for other in poses]
            if min(gaps, default=0.0) >= 0:
                poses.append(pose)
                break
    return poses


def _draw_actor(rng: np.random.Generator, background: np.ndarray, pose: np.ndarray) -> _Actor:
    shape = SHAPE_NAMES.index(SHAPES[rng.integers(len(SHAPES))])
    mask = shape_mask(rng, shape, PATCH_SIDE)
    moments = cv2.moments(mask)
    centre = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
    x, y, reach = int(pose[0]), int(pose[1]), int(SIDES[0] / 2)
    backdrop = background[y - reach : y + reach, x - reach : x + reach].reshape(-1, 3).mean(axis=0)
    colour = colour_away_from(rng, backdrop, 110.0, shape)
    texture = draw_texture(rng, len(mask), colour, colour * rng.uniform(0.55, 0.9))
    label = int(rng.integers(len(CLASS_NAMES)))
    speed, growth, spin = (rng.uniform(*limits) for limits in (SPEED, GROWTH, SPIN))
    rate = np.array(MOTIONS[CLASS_NAMES[label]]) * (speed, speed, growth, spin)
    return _Actor(mask, centre, texture, pose, label, rate)


def _paint(frame: np.ndarray, actor: _Actor, steps: int) -> tuple[int, int, int, int]:
    """Paints the shape `steps` frames after the middle, and returns the box of the pixels that it half covers."""
    x, y, log_side, angle = actor.pose + steps * actor.rate
    scale = math.exp(log_side) / PATCH_SIDE
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # The pixel of index i is from i to i + 1, so that its centre is at i + 0.5.
    transform = np.column_stack([turn, (x - 0.5, y - 0.5) - turn @ actor.centre])
    alpha, texture = (cv2.warpAffine(patch, transform, SIZE[::-1]) for patch in (actor.mask, actor.texture))
    frame[:] = to_pixels(frame + alpha[..., None] * (texture - frame))
    box = tight_box(alpha >= 0.5)
    assert box is not None  # the centroid is inside the picture
    return box

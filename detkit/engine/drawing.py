"""Boxes with their names, masks and keypoints, drawn on pictures: readable in crowds, in any script.

Legend: canvas and pictures are uint8 `[H, W, 3]` RGB; boxes are xyxy in their pixels; N objects, P keypoints of each.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from detkit.engine.label_layout import LabelLayout, Rectangle
from detkit.engine.lettering import Colour, render
from detkit.nn.selection import KEYPOINT_SCORES
from detkit.structures import Detections, EncodedMasks, MaskCrops, Size

# Colours that are told apart on a picture; `colour_of` goes on from them.
FIRST_COLOURS: Sequence[Colour] = (
    (230, 57, 70),
    (29, 120, 216),
    (42, 157, 80),
    (244, 140, 6),
    (131, 56, 236),
    (0, 150, 160),
    (214, 51, 132),
    (110, 90, 60),
)
NUM_COLOURS = 160
GREY: Colour = (140, 140, 140)
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)
DASH = 6  # px, and as much between two
OPACITY = 0.45  # of a mask
MIN_KEYPOINT_SCORE = 0.0  # a keypoint is drawn if its logit is above
HIDDEN = 1  # visibility of a keypoint that is labelled and cannot be seen


@dataclass(frozen=True)
class DrawingStyle:
    """
    thickness    of the lines, px; None: by the size of the picture
    font         a file; None: one that is installed and has the characters of the names
    show_scores  beside the names
    by           what has a colour of its own: each class, or each track, those without one being grey
    masks        are drawn where the detector has them
    keypoints    likewise, and the lines between them, but for those whose score is not above `MIN_KEYPOINT_SCORE`
    """

    thickness: int | None = None
    font: Path | None = None
    show_scores: bool = True
    by: Literal["class", "track"] = "class"
    masks: bool = True
    keypoints: bool = True


@dataclass
class Trails:
    """Where the tracks of one video were in the last frames: the middles of their boxes, for lines behind them."""

    length: int = 30  # frames
    points: dict[int, deque[tuple[int, int]]] = field(default_factory=dict)  # of each track that is in sight

    def follow(self, detections: Detections) -> None:
        """Adds a frame. A track that is not in it is forgotten."""
        if detections.objects.track_ids is None:
            return
        seen = {}
        for track, box in zip(detections.objects.track_ids.tolist(), detections.boxes.tolist(), strict=True):
            if track >= 0:
                seen[track] = self.points.get(track, deque(maxlen=self.length))
                seen[track].append((round((box[0] + box[2]) / 2), round((box[1] + box[3]) / 2)))
        self.points = seen


def draw(
    image: np.ndarray, detections: Detections, style: DrawingStyle | None = None, trails: Trails | None = None
) -> np.ndarray:
    """A copy of the picture with masks, boxes, keypoints, class names, scores, and numbers of tracks; the best on top.

    A label lies where it covers no other: above its box, below, inside or beside it, else a little away with a line to
    its box. A box for whose label there is no room has none.

    trails  of the video so far; this frame is added to them
    """
    style = style or DrawingStyle()
    size = (image.shape[0], image.shape[1])
    thickness = style.thickness or thickness_for(size)
    colours, texts = _colours(detections, style), list(_texts(detections, style))
    masks = detections.masks if style.masks else None
    canvas: np.ndarray = image.copy() if masks is None else draw_masks(image, masks, colours)
    boxes = [_corners(box, size) for box in detections.boxes.tolist()]
    if trails is not None:
        trails.follow(detections)
        _draw_trails(canvas, trails, dict(zip(_tracks(detections), colours, strict=True)), thickness)
    for box, colour in zip(reversed(boxes), reversed(colours), strict=True):
        _draw_outline(canvas, box, colour, thickness)
    if style.keypoints and detections.keypoints is not None:
        canvas = draw_keypoints(canvas, _sure_keypoints(detections), _skeleton(detections), colours)
    layout, height = LabelLayout(size), letter_height(size)
    for box, text, colour in zip(boxes, texts, colours, strict=True):
        label = render(text, height, contrast(colour), colour, style.font)
        if spot := layout.place(box, (label.shape[0], label.shape[1])):
            if spot.away:
                _draw_leader(canvas, box, spot.rectangle, colour)
            _paste(canvas, label, spot.rectangle)
    return canvas


def draw_masks(image: np.ndarray, masks: EncodedMasks | MaskCrops[Any], colours: Sequence[Colour]) -> np.ndarray:
    """A copy of the picture with N masks in their colours, translucent and with an outline; the first on top."""
    canvas: np.ndarray = image.copy()
    crops = masks.crops() if isinstance(masks, EncodedMasks) else masks
    thickness = max(1, thickness_for((image.shape[0], image.shape[1])) // 2)
    rows = list(zip(crops.crops(), crops.windows.tolist(), colours, strict=True))
    for crop, (x1, y1, x2, y2), colour in reversed(rows):
        inside = np.asarray(crop)
        window = canvas[y1:y2, x1:x2]
        window[inside] = (window[inside] * (1 - OPACITY) + np.array(colour) * OPACITY).round()
        contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, colour, thickness, offset=(x1, y1))
    return canvas


def draw_keypoints(
    image: np.ndarray, keypoints: np.ndarray, skeleton: Sequence[tuple[int, int]], colours: Sequence[Colour]
) -> np.ndarray:
    """A copy of the picture with the keypoints of N objects in their colours, joined by lines; the first on top.

    keypoints  float `[N, P, 3]`: x, y and visibility. One that is not labelled (0) is left out, and so are its lines;
               a hidden one (1) is a ring
    skeleton   pairs of keypoints that a line joins
    """
    canvas: np.ndarray = image.copy()
    thickness = thickness_for((image.shape[0], image.shape[1]))
    for points, colour in reversed(list(zip(keypoints.tolist(), colours, strict=True))):
        # the pixel in which a point lies
        places = [(math.floor(x), math.floor(y)) if visibility > 0 else None for x, y, visibility in points]
        joined = [(places[a], places[b]) for a, b in skeleton]
        lines = [np.array(line, np.int32) for line in joined if None not in line]
        if thickness > 1:
            cv2.polylines(canvas, lines, False, contrast(colour), thickness + 2, cv2.LINE_AA)
        cv2.polylines(canvas, lines, False, colour, thickness, cv2.LINE_AA)
        for place, (_, _, visibility) in zip(places, points, strict=True):
            if place is not None:
                _draw_dot(canvas, place, colour, thickness, ring=visibility == HIDDEN)
    return canvas


def draw_box(canvas: np.ndarray, box: Sequence[float], text: str, colour: Colour, *, dashed: bool = False) -> None:
    """Draws on `canvas` one box, and the text above its upper left corner, or as near as the borders allow."""
    size = (canvas.shape[0], canvas.shape[1])
    corners, thickness = _corners(box, size), thickness_for(size)
    if dashed:
        x1, y1, x2, y2 = corners
        for start, end in pairwise([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]):
            _draw_dashes(canvas, start, end, colour, thickness)
    else:
        _draw_outline(canvas, corners, colour, thickness)
    if text:
        label = render(text, letter_height(size), contrast(colour), colour)
        if spot := LabelLayout(size).place(corners, (label.shape[0], label.shape[1])):
            _paste(canvas, label, spot.rectangle)


def colour_of(index: int) -> Colour:
    """Of a class or track: always the same. The first 160 differ."""
    return _palette()[index % NUM_COLOURS]


@cache
def _palette() -> list[Colour]:
    """Each colour after the first few is the one that is farthest from all before it, to the eye (CIELAB)."""
    steps = np.linspace(0, 255, 12).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(candidates)
    vivid = (np.hypot(lab[:, 1], lab[:, 2]) > 25) & (lab[:, 0] > 25) & (lab[:, 0] < 90)
    candidates, lab = candidates[vivid], lab[vivid]
    colours = list(FIRST_COLOURS)
    distance = np.full(len(lab), np.inf)
    for colour in _lab(np.array(colours, np.uint8)):
        distance = np.minimum(distance, np.linalg.norm(lab - colour, axis=1))
    while len(colours) < NUM_COLOURS:
        farthest = int(distance.argmax())
        red, green, blue = candidates[farthest].tolist()
        colours.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=1))
    return colours


def _lab(colours: np.ndarray) -> np.ndarray:
    """float32 `[N, 3]` of uint8 `[N, 3]`."""
    lab: np.ndarray = cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    return lab


def contrast(colour: Colour) -> Colour:
    """White or black, for text on the colour: white while its contrast is 3, the least for large text by WCAG 2."""
    linear = [(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in (part / 255 for part in colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return WHITE if 1.05 / (luminance + 0.05) >= 3 else BLACK


def thickness_for(size: Size) -> int:
    return max(1, round(min(size) / 240))


def letter_height(size: Size) -> int:
    """px, of the letters of labels on a picture of `size` (h, w)."""
    return max(10, round(math.pow(min(size), 0.65) / 4.2))  # 13 of 480, 22 of 1080, 43 of 3000


def _tracks(detections: Detections) -> list[int]:
    tracks = detections.objects.track_ids
    return [-1] * len(detections) if tracks is None else tracks.tolist()


def _colours(detections: Detections, style: DrawingStyle) -> list[Colour]:
    if style.by == "class":
        return [colour_of(label) for label in detections.labels.tolist()]
    return [GREY if track < 0 else colour_of(track) for track in _tracks(detections)]


def _texts(detections: Detections, style: DrawingStyle) -> Iterator[str]:
    names = detections.categories.names
    columns = (detections.labels.tolist(), detections.scores.tolist(), _tracks(detections))
    for label, score, track in zip(*columns, strict=True):
        yield (names[label] + (f" {score:.2f}" if style.show_scores else "") + (f" #{track}" if track >= 0 else ""))


def _sure_keypoints(detections: Detections) -> np.ndarray:
    """float32 `[N, P, 3]`: those with a score that is too low are not visible."""
    assert detections.keypoints is not None
    keypoints: np.ndarray = detections.keypoints.cpu().numpy().copy()
    scores = detections.objects.extra.get(KEYPOINT_SCORES)
    if scores is not None:
        keypoints[scores.cpu().numpy() <= MIN_KEYPOINT_SCORE, 2] = 0
    return keypoints


def _skeleton(detections: Detections) -> Sequence[tuple[int, int]]:
    return detections.categories.keypoints.skeleton if detections.categories.keypoints else ()


def _corners(box: Sequence[float], size: Size) -> Rectangle:
    """The pixels of the corners: x2 of a box is the border behind its last pixel."""
    x1, y1, x2, y2 = (round(side) for side in box)
    return max(0, x1), max(0, y1), min(size[1], x2) - 1, min(size[0], y2) - 1


def _draw_outline(canvas: np.ndarray, box: Rectangle, colour: Colour, thickness: int) -> None:
    """In the colour, with an edge that contrasts, so that it is seen on a picture of that colour."""
    if thickness > 1:  # the edge of a thinner line would hide it
        cv2.rectangle(canvas, box[:2], box[2:], contrast(colour), thickness + 2)
    cv2.rectangle(canvas, box[:2], box[2:], colour, thickness)


def _draw_dot(canvas: np.ndarray, place: tuple[int, int], colour: Colour, thickness: int, *, ring: bool) -> None:
    """Twice as wide as a line, with an edge that contrasts."""
    cv2.circle(canvas, place, thickness + 2, contrast(colour), cv2.FILLED, cv2.LINE_AA)
    cv2.circle(canvas, place, thickness + 1, colour, 1 if ring else cv2.FILLED, cv2.LINE_AA)


def _draw_trails(canvas: np.ndarray, trails: Trails, colours: dict[int, Colour], thickness: int) -> None:
    for track, points in trails.points.items():
        line = [np.array(points, np.int32)]
        if thickness > 1:
            cv2.polylines(canvas, line, False, contrast(colours[track]), thickness + 2, cv2.LINE_AA)
        cv2.polylines(canvas, line, False, colours[track], thickness, cv2.LINE_AA)


def _draw_leader(canvas: np.ndarray, box: Rectangle, label: Rectangle, colour: Colour) -> None:
    """A thin line from the label to the nearest point of the box's border."""
    middle = ((label[0] + label[2]) // 2, (label[1] + label[3]) // 2)
    end = (min(max(middle[0], box[0]), box[2]), min(max(middle[1], box[1]), box[3]))
    cv2.line(canvas, middle, end, colour, 1, cv2.LINE_AA)


def _paste(canvas: np.ndarray, label: np.ndarray, spot: Rectangle) -> None:
    x1, y1, x2, y2 = spot
    canvas[y1:y2, x1:x2] = label[: y2 - y1, : x2 - x1]


def _draw_dashes(
    canvas: np.ndarray, start: tuple[int, int], end: tuple[int, int], colour: Colour, thickness: int
) -> None:
    """A dashed line that is level or upright."""
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    points = np.linspace(start, end, max(1, length // DASH) + 1).round().astype(int).tolist()
    for one, two in zip(points[::2], points[1::2], strict=False):
        cv2.line(canvas, one, two, colour, thickness)

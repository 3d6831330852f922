"""Pictures with their boxes for the page: each is embedded once, however many examples show it, within a budget.

A scene is a picture with all objects and detections of one detector; a card is an example that points at a scene.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from detkit.config import UserError
from detkit.data.pictures import read_picture
from detkit.evaluation.analysis import Analysis, Example
from detkit.evaluation.store import DetectionStore

BUDGET = 9_000_000  # characters of embedded pictures and their boxes: a report stays below 15 MB
LONG_SIDE = 480  # px of an embedded picture; smaller ones stay as they are
QUALITY = 80  # of its JPEG
MAX_DETECTIONS = 100  # drawn of an image, the best
MAX_CARDS = 500  # examples of a detector
BOX_CHARACTERS = 200  # of a box and its name on the page, about

Kind = Literal["false-positive", "missed", "loose"]
KINDS: tuple[Kind, ...] = ("false-positive", "missed", "loose")


@dataclass(frozen=True)
class Box:
    """
    rect   x, y, width, height in pixels of the image
    text   its class
    score  of a detection; None for an object
    """

    rect: tuple[float, float, float, float]
    text: str
    score: float | None = None
    ignored: bool = False


@dataclass(frozen=True)
class Scene:
    """
    key          unique on the page
    picture      key of the embedded picture; None: there is none at hand, and the boxes are drawn on a plain ground
    size         width and height of the image, px
    left_out     detections that are not drawn, the lowest
    """

    key: str
    picture: str | None
    name: str
    size: tuple[int, int]
    truths: Sequence[Box]
    detections: Sequence[Box]
    left_out: int


@dataclass(frozen=True)
class Card:
    """An example on the page: a detection, an object or both, highlighted in a scene."""

    kind: Kind
    scene: Scene
    class_name: str
    error: str
    score: float | None
    iou: float | None
    detection: Box | None
    truth: Box | None

    @property
    def title(self) -> str:
        match self.kind:
            case "missed":
                return f"{self.class_name} missed"
            case "loose":
                return f"{self.class_name}, IoU {self.iou:.2f}"
            case _ if self.error == "class" and self.truth:
                return f"{self.truth.text} taken for {self.class_name}"
            case _:
                return f"{self.class_name}, {self.error} error"


@dataclass(frozen=True)
class Picture:
    """An embedded picture: width and height of the image it stands for, and a data URI."""

    size: tuple[int, int]
    uri: str


@dataclass
class PictureBook:
    """The pictures and scenes of a page.

    limit       characters after which no further scene is taken
    unreadable  why pictures could not be decoded
    """

    limit: int = BUDGET
    pictures: dict[str, Picture] = field(default_factory=dict)
    scenes: dict[tuple[int, int], Scene] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    used: int = 0
    _keys: dict[str, str | None] = field(default_factory=dict)  # of a picture by its path

    def scene(self, subject: int, store: DetectionStore, image: int) -> Scene | None:
        """The scene of an image and the detector number `subject`; None if it does not fit into the budget."""
        known = self.scenes.get((subject, image))
        if known or self.used >= self.limit:
            return known
        truth = store.ground_truth[image]
        detections = store.detections[truth.image_id]
        height, width = (max(1, side) for side in truth.size)
        names = store.categories.names
        shown = min(len(detections), MAX_DETECTIONS)
        objects, best = truth.objects, detections.objects.take(slice(shown)).to_arrays()
        truths = [
            Box(_rect(box), names[label], ignored=bool(ignored))
            for box, label, ignored in zip(objects.boxes, objects.labels, objects.ignore, strict=True)
        ]
        boxes = [
            Box(_rect(box), names[label], score=float(score))
            for box, label, score in zip(best.boxes, best.labels, detections.scores.tolist(), strict=False)
        ]
        path = store.paths[image] if store.paths else None
        name = Path(path).name if path else str(truth.image_id)
        picture = self._embed(path, (width, height)) if path else None
        key = f"scene-{subject}-{image}"
        scene = Scene(key, picture, name, (width, height), truths, boxes, len(detections) - shown)
        self.scenes[subject, image] = scene
        self.used += BOX_CHARACTERS * (len(truths) + len(boxes))
        return scene

    def _embed(self, path: str, size: tuple[int, int]) -> str | None:
        """The key of the picture; None if it cannot be decoded."""
        if path not in self._keys:
            try:
                uri = thumbnail(path, size)
            except UserError as error:
                self.unreadable.append(str(error))
                self._keys[path] = None
            else:
                self._keys[path] = key = f"picture-{len(self.pictures)}"
                self.pictures[key] = Picture(size, uri)
                self.used += len(uri)
        return self._keys[path]


def thumbnail(path: str, size: tuple[int, int]) -> str:
    """The picture as a JPEG of at most `LONG_SIDE` px, in a data URI. `size` (w, h). Raises UserError if unreadable."""
    scale = min(1.0, LONG_SIDE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    picture = read_picture(path, (height, width))
    if picture.shape[:2] != (height, width):
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def example_cards(book: PictureBook, subject: int, store: DetectionStore, analysis: Analysis) -> list[Card]:
    """The worst examples of every kind and class, as many as fit: first the worst of each, then the second, ..."""
    cards: list[Card] = []
    for kind, example in _in_turn(analysis):
        if len(cards) == MAX_CARDS:
            break
        scene = book.scene(subject, store, example.image)
        if scene:
            cards.append(_card(kind, example, scene, store))
    return cards


def _in_turn(analysis: Analysis) -> Iterator[tuple[Kind, Example]]:
    groups: dict[tuple[Kind, int], list[Example]] = defaultdict(list)
    for kind, examples in zip(KINDS, (analysis.false_positives, analysis.missed, analysis.loose), strict=True):
        for example in examples:
            groups[kind, example.label].append(example)
    for rank in range(max(map(len, groups.values()), default=0)):
        for (kind, _), examples in groups.items():
            if rank < len(examples):
                yield kind, examples[rank]


def _card(kind: Kind, example: Example, scene: Scene, store: DetectionStore) -> Card:
    truth = store.ground_truth[example.image]
    names, detection, target = store.categories.names, None, None
    if example.detection is not None:
        detections = store.detections[truth.image_id]
        label = int(detections.labels[example.detection])
        score = float(detections.scores[example.detection])
        detection = Box(_rect(detections.boxes[example.detection].numpy()), names[label], score)
    if example.target is not None:
        label = int(truth.objects.labels[example.target])
        target = Box(_rect(truth.objects.boxes[example.target]), names[label])
    error, class_name = example.error or "", names[example.label]
    return Card(kind, scene, class_name, error, example.score, example.iou, detection, target)


def _rect(box: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = np.asarray(box, np.float64).round(1).tolist()
    return x1, y1, round(x2 - x1, 1), round(y2 - y1, 1)

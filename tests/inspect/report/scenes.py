"""Small data sets with detections, for the tests of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detkit.evaluation.analysis import analyse
from detkit.evaluation.build import build_evaluators
from detkit.evaluation.evaluator import summarise
from detkit.evaluation.store import DetectionStore
from detkit.inspect.report.subject import Subject
from detkit.structures import Categories, Detections, GroundTruth, Objects

HEIGHT, WIDTH = 120, 160
NASTY = '<b>"&'  # a name that breaks a page that does not escape it

Boxes = Sequence[tuple[float, float, float, float]]


def objects(boxes: Boxes, labels: Sequence[int], ignore: Sequence[bool] = ()) -> Objects[np.ndarray]:
    flags = np.array(ignore, np.bool_) if ignore else np.zeros(len(labels), np.bool_)
    return Objects(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), flags)


def found(
    categories: Categories, boxes: Boxes = (), labels: Sequence[int] = (), scores: Sequence[float] = ()
) -> Detections:
    columns = Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )
    return Detections(columns, categories)


def random_store(
    num_images: int, names: Sequence[str] = ("cat", "dog"), folder: Path | None = None, *, seed: int = 0, scale: int = 1
) -> DetectionStore:
    """Three objects an image, and for each a detection that is near it, beside it, or of another class.

    folder  where its pictures are written; None: there are none
    """
    rng, categories = np.random.default_rng(seed), Categories.of_names(names)
    truths, detections, paths = [], [], []
    for number in range(num_images):
        corner = rng.uniform(0, (WIDTH - 50, HEIGHT - 50), (3, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(15, 50, (3, 2))], axis=1) * scale
        labels = rng.integers(len(names), size=3)
        truths.append(GroundTruth(number, (HEIGHT * scale, WIDTH * scale), objects(boxes.tolist(), labels.tolist())))
        moved = np.clip(boxes + scale * rng.normal(0, 5, (3, 4)), 0, scale * np.array([WIDTH, HEIGHT] * 2))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        others = np.where(rng.random(3) < 0.3, rng.integers(len(names), size=3), labels)
        scores = np.sort(rng.random(3))[::-1]
        detections.append(found(categories, moved.tolist(), others.tolist(), scores.tolist()))
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(str(folder / f'{number} "&.png'))
            Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(paths[-1])
    store = DetectionStore(categories, truths, paths if folder else None)
    for truth, detected in zip(truths, detections, strict=True):
        store.update(truth.image_id, detected)
    return store


def subject(store: DetectionStore, name: str = "runs/one") -> Subject:
    evaluation = summarise(store, build_evaluators(["voc07", "coco"], store, coco_backend="fast"))
    return Subject(name, store, evaluation, analyse(store))


class Page(HTMLParser):
    """What a browser would make of the text: tags with their attributes, in order, and the text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.html = html
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.open.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, attribute: str, tag: str | None = None) -> list[str]:
        return [
            attributes[attribute] for name, attributes in self.tags if attribute in attributes and tag in (None, name)
        ]

    def cards(self) -> list[dict[str, str]]:
        return [attributes for _, attributes in self.tags if attributes.get("class") == "card"]

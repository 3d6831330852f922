"""Prints an evaluation, turns it into JSON, and reads and writes detections as COCO results files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkit.evaluation.evaluator import Evaluation
from detkit.evaluation.flat_boxes import to_xywh
from detkit.evaluation.protocols import Protocol
from detkit.structures import Categories, Detections, ImageId, Objects


def format_table(evaluation: Evaluation, protocol: Protocol) -> str:
    """The result of one protocol: its rules, the size of the data, AP by class and its numbers; `-` for nan."""
    result = evaluation.results[protocol]
    width = max(map(len, [*result.per_class, "class"]))
    lines = [
        f"{protocol}: {result.rules}",
        f"{evaluation.num_images} images, {sum(evaluation.num_objects.values())} objects and "
        f"{evaluation.num_ignored} ignored, {evaluation.num_detections} detections",
        "",
        f"{'class':{width}}  objects      AP",
        *(f"{name:{width}}  {evaluation.num_objects[name]:7d}  {_number(ap)}" for name, ap in result.per_class.items()),
        "",
    ]
    numbers = [f"{name:5} {_number(value)}" for name, value in result.metrics.items()]
    lines += ["   ".join(numbers[row : row + 3]) for row in range(0, len(numbers), 3)]  # COCO's twelve in four rows
    return "\n".join(lines)


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Plain values at full precision: by protocol its numbers and `per_class`; None where there is no object."""
    return {
        protocol: _none_for_nan(result.metrics) | {"per_class": _none_for_nan(result.per_class)}
        for protocol, result in evaluation.results.items()
    }


def detections_to_coco(detections: Mapping[ImageId, Detections], categories: Categories) -> list[dict[str, Any]]:
    """The entries of a COCO results file, with the ids that the data set uses for its classes.

    pycocotools measures the same numbers on the file as the evaluator on the detections.
    """
    return [
        {"image_id": image_id, "category_id": categories.ids[label], "bbox": box, "score": score}
        for image_id, image_detections in detections.items()
        for box, score, label in zip(
            to_xywh(image_detections.boxes.cpu().numpy()).tolist(),
            image_detections.scores.tolist(),
            image_detections.labels.tolist(),
            strict=True,
        )
    ]


def load_coco_detections(path: str | Path, categories: Categories) -> dict[ImageId, Detections]:
    """Reads a COCO results file. Images without an entry are absent. Equal scores keep the order of the file."""
    labels = {category_id: label for label, category_id in enumerate(categories.ids)}
    entries_by_image: dict[ImageId, list[dict[str, Any]]] = {}
    for number, entry in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))):
        if entry["category_id"] not in labels:
            raise ValueError(f"{path}: entry {number}: category id {entry['category_id']!r} is not in the data set")
        entries_by_image.setdefault(entry["image_id"], []).append(entry)
    detections: dict[ImageId, Detections] = {}
    for image_id, entries in entries_by_image.items():
        entries.sort(key=lambda entry: -entry["score"])
        boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
        boxes[:, 2:] += boxes[:, :2]
        objects = Objects(
            boxes=torch.from_numpy(boxes).float(),
            labels=torch.tensor([labels[entry["category_id"]] for entry in entries], dtype=torch.int64),
            scores=torch.tensor([entry["score"] for entry in entries], dtype=torch.float32),
        )
        detections[image_id] = Detections(objects, categories)
    return detections


def _number(value: float) -> str:
    return "     -" if math.isnan(value) else f"{value:.4f}"


def _none_for_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}

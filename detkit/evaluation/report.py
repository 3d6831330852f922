"""An evaluation as text and as JSON, and detections as COCO results files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkit.evaluation.coco import to_xywh
from detkit.evaluation.evaluator import Evaluation, Protocol
from detkit.structures import Detections, ImageId


def format_table(evaluation: Evaluation, protocol: Protocol) -> str:
    """The result of one protocol: its rules, what was measured, AP by class, and its numbers; `-` without objects."""
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


def detections_to_coco(detections: Mapping[ImageId, Detections], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The entries of a COCO results file, with the data set's own ids; `category_ids[label]`.

    Evaluated by pycocotools, the file gives the numbers that the evaluator gave.
    """
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for image_id, found in detections.items()
        for box, score, label in zip(
            to_xywh(found.boxes.cpu().numpy()).tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]


def load_coco_detections(
    path: str | Path, class_names: Sequence[str], category_ids: Sequence[int]
) -> dict[ImageId, Detections]:
    """Reads a COCO results file. Images without an entry are absent. Equal scores keep the order of the file."""
    labels = {category_id: label for label, category_id in enumerate(category_ids)}
    images: dict[ImageId, list[dict[str, Any]]] = {}
    for number, entry in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))):
        if entry["category_id"] not in labels:
            raise ValueError(f"{path}: entry {number}: category id {entry['category_id']!r} is not in the data set")
        images.setdefault(entry["image_id"], []).append(entry)
    detections: dict[ImageId, Detections] = {}
    for image_id, entries in images.items():
        entries.sort(key=lambda entry: -entry["score"])
        boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
        boxes[:, 2:] += boxes[:, :2]
        detections[image_id] = Detections(
            torch.from_numpy(boxes).float(),
            torch.tensor([entry["score"] for entry in entries], dtype=torch.float32),
            torch.tensor([labels[entry["category_id"]] for entry in entries], dtype=torch.int64),
            tuple(class_names),
        )
    return detections


def _number(value: float) -> str:
    return "     -" if math.isnan(value) else f"{value:.4f}"


def _none_for_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}

"""Prints an evaluation, turns it into JSON, and writes detections as COCO results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from detkit.evaluation.evaluator import Evaluation
from detkit.evaluation.protocols import Protocol
from detkit.formats import coco_results
from detkit.structures import Categories, Detections, ImageId


def format_table(evaluation: Evaluation, protocol: Protocol) -> str:
    """The result of one protocol: its rules, the size of the data, AP by class and its numbers; `-` for nan."""
    result = evaluation.results[protocol]
    width = max(map(len, [*result.per_class, "class"]))
    lines = [
        f"{protocol}: {result.rules}",
        _size(evaluation),
        "",
        f"{'class':{width}}  objects      AP",
        *(f"{name:{width}}  {evaluation.num_objects[name]:7d}  {_number(ap)}" for name, ap in result.per_class.items()),
        "",
    ]
    return "\n".join([*lines, *_rows(result.metrics)])


def format_side_by_side(evaluation: Evaluation) -> str:
    """All protocols in one table: AP by class in a column each, then their rules; `-` for nan."""
    results = evaluation.results
    width = max(map(len, [*evaluation.num_objects, "class"]))
    mean = _columns({protocol: result.score for protocol, result in results.items()})
    lines = [
        _size(evaluation),
        "",
        f"{'class':{width}}  objects" + "".join(f"  {protocol:>6}" for protocol in results),
        *(
            f"{name:{width}}  {count:7d}"
            + _columns({protocol: result.per_class[name] for protocol, result in results.items()})
            for name, count in evaluation.num_objects.items()
        ),
        f"{'mean':{width}}  {sum(evaluation.num_objects.values()):7d}{mean}",
        "",
        *(f"{protocol}: {result.rules}" for protocol, result in results.items()),
    ]
    detailed = {protocol: result for protocol, result in results.items() if len(result.metrics) > 1}  # COCO's
    for protocol, result in detailed.items():
        lines += ["", *([f"{protocol}:"] if len(detailed) > 1 else []), *_rows(result.metrics)]
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
    return [row for image_id, of_image in detections.items() for row in coco_results(image_id, of_image, categories)]


def _size(evaluation: Evaluation) -> str:
    return (
        f"{evaluation.num_images} images, {sum(evaluation.num_objects.values())} objects and "
        f"{evaluation.num_ignored} ignored, {evaluation.num_detections} detections"
    )


def _columns(values: Mapping[Protocol, float]) -> str:
    """A number of each protocol below its name."""
    return "".join(f"  {_number(value):>{len(protocol)}}" for protocol, value in values.items())


def _rows(metrics: Mapping[str, float]) -> list[str]:
    """COCO's twelve in four rows, the ten of keypoints in two."""
    numbers, size = [f"{name:5} {_number(value)}" for name, value in metrics.items()], 5 if len(metrics) == 10 else 3
    return ["   ".join(numbers[row : row + size]) for row in range(0, len(numbers), size)]


def _number(value: float) -> str:
    return "     -" if math.isnan(value) else f"{value:.4f}"


def _none_for_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}

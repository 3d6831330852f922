"""Whether the input, the maps and the number of predictions of a detector suffice for the objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from detkit.data.dataset import plural
from detkit.detectors.build import DetectorConfig
from detkit.detectors.fast_rcnn import FastRCNNConfig
from detkit.detectors.rcnn import RCNNConfig
from detkit.detectors.sliding_window import SlidingWindowConfig
from detkit.detectors.yolov1 import YOLOv1Config
from detkit.inspect.doctor.findings import Finding, Place, Severity, Table
from detkit.inspect.doctor.network_input import InputObjects, Shapes
from detkit.inspect.doctor.tally import MAX_EXAMPLES, by_split, object_finding
from detkit.nn.proposals.selective_search import SelectiveSearchConfig

MANY = 0.1  # part of the objects from which small ones are a warning, not a note
SIDE_EDGES = (8, 16, 32, 64, 128, 256, 512)  # input px, of the root of the area
ASPECT_EDGES = (1 / 4, 1 / 3, 1 / 2, 1 / 1.5, 1.5, 2, 3, 4)  # width / height
ASPECT_NAMES = ("1:4", "1:3", "1:2", "2:3", "3:2", "2:1", "3:1", "4:1")


def capacity_findings(config: DetectorConfig, shapes: Shapes, views: Sequence[InputObjects]) -> list[Finding]:
    return [*_below_stride(config, shapes, views), *_over_limits(config, views), *_proposals(config, views)]


def size_tables(views: Sequence[InputObjects]) -> list[Table]:
    """Histograms of the objects at the size of the model's input."""
    sides = [view.sides.astype(np.float64) for view in views]
    roots = [np.sqrt(each.prod(axis=1)) for each in sides]
    aspects = [each[:, 0] / each[:, 1] for each in sides]
    names = [str(edge) for edge in SIDE_EDGES]
    return [
        _histogram("Root of the area in input px", views, roots, SIDE_EDGES, names),
        _histogram("Width : height in input px", views, aspects, ASPECT_EDGES, ASPECT_NAMES),
    ]


def _histogram(
    title: str,
    views: Sequence[InputObjects],
    values: Sequence[np.ndarray],
    edges: Sequence[float],
    names: Sequence[str],
) -> Table:
    counts = [np.bincount(np.searchsorted(edges, each, side="right"), minlength=len(edges) + 1) for each in values]
    between = [f"{low} to {high}" for low, high in pairwise(names)]
    labels = [f"below {names[0]}", *between, f"{names[-1]} and more"]
    rows: list[list[str | float]] = [
        [label, *(int(count[number]) for count in counts)] for number, label in enumerate(labels)
    ]
    return Table(title, ["from, to", *(view.split.name for view in views)], rows)


def _below_stride(config: DetectorConfig, shapes: Shapes, views: Sequence[InputObjects]) -> Iterator[Finding]:
    """Objects that are smaller, in both sides, than a cell of the finest map; crops have no such map."""
    if isinstance(config, RCNNConfig | SlidingWindowConfig):
        return
    stride = shapes.strides[0]
    chosen, texts = [], []
    for view in views:
        longer = view.sides.max(axis=1, initial=0)
        order = np.argsort(longer, kind="stable")
        small = order[longer[order] < stride]
        chosen.append((view.split, view.rows[small]))
        texts.append([f"{width:.1f} x {height:.1f} px in the input" for width, height in view.sides[small].tolist()])
    share = sum(len(rows) for _, rows in chosen) / max(1, sum(len(view.rows) for view in views))
    what = f"are smaller at the input's size than a cell of the finest map, {stride} px ({share:.1%})"
    fix = "Enlarge model.input.resize, or add a finer level to model.backbone.strides where the detector allows it."
    severity: Severity = "warning" if share >= MANY else "note"
    yield from object_finding("smaller-than-stride", severity, chosen, what, fix, texts=texts)


def _over_limits(config: DetectorConfig, views: Sequence[InputObjects]) -> Iterator[Finding]:
    part = "roi" if hasattr(config, "roi") else "head"
    settings: Any = getattr(config, part)
    limit, name = settings.selection.max_detections, f"model.{part}.selection.max_detections"
    yield from _more_than("more-than-detections", limit, name, views)
    for field in ("num_queries", "num_boxes"):  # of heads that predict a set
        if hasattr(settings, field):
            yield from _more_than("more-than-queries", getattr(settings, field), f"model.{part}.{field}", views)
    if isinstance(config, YOLOv1Config):
        yield from _more_than("more-than-cells", config.head.grid**2, "model.head.grid, squared", views)


def _more_than(code: str, limit: int, name: str, views: Sequence[InputObjects]) -> Iterator[Finding]:
    places: list[Place] = []
    lost = 0
    for view in views:
        counts = np.bincount(view.images, minlength=len(view.windows))
        order = np.argsort(-counts, kind="stable")
        for image in order[counts[order] > limit].tolist():
            places.append(view.split.place(image, None, plural(int(counts[image]), "object")))
            lost += int(counts[image]) - limit
    if places:
        total = sum(len(view.windows) for view in views)
        message = (
            f"{len(places):,} of {plural(total, 'picture')} ({by_split(places)}) have more than {limit} objects, "
            f"{lost:,} more in all."
        )
        yield Finding(code, "warning", len(places), total, message, f"Raise {name}.", places[:MAX_EXAMPLES])


def _proposals(config: DetectorConfig, views: Sequence[InputObjects]) -> Iterator[Finding]:
    """Objects so small that no proposal can be positive: selective search drops what is below `min_side`."""
    if not isinstance(config, RCNNConfig | FastRCNNConfig):
        return
    if isinstance(config.proposals, SelectiveSearchConfig):
        least, threshold = config.proposals.min_side, config.roi.fg_threshold
        chosen = []
        for view in views:
            boxes = view.split.dataset.objects.boxes[view.rows].astype(np.float64)
            sides = boxes[:, 2:] - boxes[:, :2]
            best = sides.prod(axis=1) / np.maximum(sides, least).prod(axis=1)  # around it, as small as allowed
            chosen.append((view.split, view.rows[best < threshold]))
        what = f"are so small that no proposal of at least {least} px a side overlaps them by {threshold:g}"
        fix = "Lower model.proposals.min_side."
        share = sum(len(rows) for _, rows in chosen) / max(1, sum(len(view.rows) for view in views))
        severity: Severity = "warning" if share >= MANY else "note"
        yield from object_finding("smaller-than-proposals", severity, chosen, what, fix)
    total = sum(len(view.rows) for view in views)
    message = "What recall the proposals reach is not measured here: making them takes seconds a picture."
    yield Finding("proposals-not-measured", "note", 0, total, message, "`detkit proposals CONFIG` measures it.")

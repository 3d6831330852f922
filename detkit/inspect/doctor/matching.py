"""Which objects the anchors, priors, windows or cells of a detector can answer for, by the rules of its assigner.

Legend: M objects that are not ignored, K shapes of all levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detkit.detectors.build import DetectorConfig
from detkit.detectors.faster_rcnn import TwoStageConfig
from detkit.detectors.retinanet import RetinaNetConfig
from detkit.detectors.sliding_window import SlidingWindowConfig
from detkit.detectors.ssd import PriorBasedConfig
from detkit.detectors.yolov1 import YOLOv1Config
from detkit.detectors.yolov2 import YOLOv2Config
from detkit.detectors.yolov3 import YOLOv3Config
from detkit.inspect.doctor.best_anchor import best_iou, grids_of, window_grids
from detkit.inspect.doctor.findings import Finding, Table
from detkit.inspect.doctor.network_input import InputObjects, Shapes
from detkit.inspect.doctor.tally import object_finding
from detkit.nn.anchors import AnchorGrid, PriorGrid
from detkit.nn.assign.grid import cells_of, last_at_each, shape_iou
from detkit.nn.assign.iou import IoUAssignerConfig

MANY = 0.1  # part of the objects from which a poor match is a warning, not a note
POOR_SHAPE = 0.5  # IoU with the most similar anchor of YOLOv2 and v3, which have no threshold for it
RECALL_AT = (0.5, 0.6, 0.7, 0.8)  # IoU of the rows of the table
Overlaps = Callable[[InputObjects], np.ndarray]


@dataclass(frozen=True)
class Boxes:
    """What a detector matches with objects.

    noun       `anchor`, `prior`, `window`
    threshold  IoU below which its assigner makes one background
    positive   IoU from which it is positive
    below      what happens to an object that none overlaps by `threshold`
    fix        of too many such objects
    overlaps   the best IoU of each object, float64 `[M]`
    by_shape   centres are laid upon each other, so that the IoU is no limit of the recall
    """

    noun: str
    threshold: float
    positive: float
    below: str
    fix: str
    overlaps: Overlaps
    by_shape: bool = False


def matching_findings(config: DetectorConfig, shapes: Shapes, views: Sequence[InputObjects]) -> list[Finding]:
    boxes = matched_boxes(config, shapes)
    findings = []
    if boxes is not None:
        chosen, texts = [], []
        for view in views:
            overlaps = boxes.overlaps(view)
            order = np.argsort(overlaps, kind="stable")
            order = order[overlaps[order] < boxes.threshold]
            chosen.append((view.split, view.rows[order]))
            texts.append([f"best IoU {overlap:.2f}" for overlap in overlaps[order].tolist()])
        share = _share([rows for _, rows in chosen], views)
        what = f"meet no {boxes.noun} with IoU {boxes.threshold:g} ({share:.1%}): {boxes.below}"
        findings += object_finding(
            "anchor-none", "warning" if share >= MANY else "note", chosen, what, boxes.fix, texts=texts
        )
    return [*findings, *_shared_predictions(config, shapes, views)]


def matching_tables(config: DetectorConfig, shapes: Shapes, views: Sequence[InputObjects]) -> list[Table]:
    """The recall that anchors allow: the part of the objects that the best one overlaps by an IoU."""
    boxes = matched_boxes(config, shapes)
    if boxes is None:
        return []
    overlaps = [boxes.overlaps(view) for view in views]
    thresholds = sorted({*RECALL_AT, boxes.threshold, boxes.positive})
    rows: list[list[str | float]] = [
        [
            f"IoU {threshold:g}{', positive' if threshold == boxes.positive and not boxes.by_shape else ''}",
            *map(_part, parts),
        ]
        for threshold in thresholds
        if (parts := [overlap >= threshold for overlap in overlaps])
    ]
    rows.append(["mean best IoU", *(float(each.mean()) if len(each) else float("nan") for each in overlaps)])
    columns = ["objects that meet one", *(view.split.name for view in views)]
    kind = "most similar shape, centres laid upon each other" if boxes.by_shape else "recall ceiling"
    return [Table(f"Objects and their best {boxes.noun}: {kind}", columns, rows)]


def matched_boxes(config: DetectorConfig, shapes: Shapes) -> Boxes | None:
    """None for detectors without anchors."""
    again = "`detkit anchors CONFIG` finds sizes that fit"
    match config:
        case TwoStageConfig(rpn=rpn):
            anchors = AnchorGrid(rpn.anchors, shapes.strides)
            inside = rpn.only_inside_anchors
            below = "all but the best one are background, on the object"
            fix = f"Change model.rpn.anchors; {again}."
            return Boxes(
                "anchor", rpn.bg_threshold, rpn.fg_threshold, below, fix, _on_canvases(shapes, anchors, inside=inside)
            )
        case RetinaNetConfig(head=head) if isinstance(head.assigner, IoUAssignerConfig):
            rule, anchors = head.assigner, AnchorGrid(head.anchors, shapes.strides)
            below = "all but the best one are background, on the object"
            fix = f"Change model.head.anchors; {again}."
            overlaps_of = _on_canvases(shapes, anchors)
            return Boxes("anchor", rule.bg_threshold, rule.fg_threshold, below, fix, overlaps_of)
        case PriorBasedConfig(head=head):
            below = "all but the best one are background, on the object"
            fix = f"Change model.head.priors, min_sizes or ratios; {again}."
            return Boxes(
                "prior", head.fg_threshold, head.fg_threshold, below, fix, _on_canvases(shapes, PriorGrid(head.priors))
            )
        case SlidingWindowConfig(windows=windows, roi=roi):
            stride, threshold = shapes.strides[-1], roi.fg_threshold

            def overlaps(view: InputObjects) -> np.ndarray:
                return _by_canvas(view, lambda size, boxes, _: best_iou(boxes, window_grids(size, windows, stride)))

            fix = "Change model.windows: a larger largest_scale reaches smaller objects; windows are square."
            return Boxes("window", threshold, threshold, "they are background in training", fix, overlaps)
        case YOLOv2Config() | YOLOv3Config():
            sides = torch.from_numpy(yolo_anchors(config, shapes))
            below = "their sides are learned from far"
            fix = f"Change model.head.anchors; {again}."
            return Boxes(
                "anchor of a similar shape", POOR_SHAPE, POOR_SHAPE, below, fix, _by_shape(sides), by_shape=True
            )
        case _:
            return None


def yolo_anchors(config: YOLOv2Config | YOLOv3Config, shapes: Shapes) -> np.ndarray:
    """float32 `[K, 2]`: width and height in input px of the anchors of all levels, finest level first."""
    if isinstance(config, YOLOv2Config):
        return np.array(config.head.anchors, np.float32) * shapes.strides[-1]
    return np.concatenate([np.array(level, np.float32) for level in config.head.anchors])


def _by_shape(sides: torch.Tensor) -> Overlaps:
    def overlaps(view: InputObjects) -> np.ndarray:
        return np.asarray(shape_iou(torch.from_numpy(view.boxes), sides).amax(dim=1).double().numpy())

    return overlaps


def _on_canvases(shapes: Shapes, layout: AnchorGrid | PriorGrid, *, inside: bool = False) -> Overlaps:
    def of_canvas(canvas: tuple[int, int], boxes: np.ndarray, windows: np.ndarray) -> np.ndarray:
        grids = grids_of(layout, shapes.map_sizes(canvas), canvas)
        return best_iou(boxes, grids, windows if inside else None)

    return lambda view: _by_canvas(view, of_canvas)


def _by_canvas(
    view: InputObjects, function: Callable[[tuple[int, int], np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """float64 `[M]`: `function(canvas, boxes, windows)` of the objects on each canvas."""
    result = np.zeros(len(view.boxes))
    for canvas, objects in view.by_canvas():
        result[objects] = function(canvas, view.boxes[objects], view.windows[view.images[objects]])
    return result


def _shared_predictions(config: DetectorConfig, shapes: Shapes, views: Sequence[InputObjects]) -> Iterator[Finding]:
    """Objects that YOLO cannot learn because another one takes their cell, or their anchor in it."""
    if not isinstance(config, YOLOv1Config | YOLOv2Config | YOLOv3Config):
        return
    chosen = []
    for view in views:
        keys = prediction_keys(config, shapes, view)
        if isinstance(config, YOLOv1Config):  # which of them is learned is drawn anew each time
            first = np.unique(keys, axis=0, return_index=True)[1]
            lost = np.setdiff1d(np.arange(len(keys)), first)
        else:  # the last is learned
            numbers = torch.from_numpy(np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1))
            last = last_at_each(numbers, len(keys)).numpy()
            lost = np.setdiff1d(np.arange(len(keys)), last)
        chosen.append((view.split, view.rows[lost]))
    share = _share([rows for _, rows in chosen], views)
    if isinstance(config, YOLOv1Config):
        code, where = "cell-shared", f"the cell of another's centre, of {config.head.grid} x {config.head.grid}"
        fix = "Enlarge model.head.grid, and with it model.input.resize.size; or take a detector with anchors."
    else:
        code, where = "anchor-shared", "the anchor and the cell of another"
        fix = "Enlarge model.input.resize.size, or give anchors that differ more (`detkit anchors CONFIG`)."
    what = f"have {where}: at most {1 - share:.1%} are learned at a time"
    yield from object_finding(code, "warning" if share >= MANY else "note", chosen, what, fix)


def prediction_keys(
    config: YOLOv1Config | YOLOv2Config | YOLOv3Config, shapes: Shapes, view: InputObjects
) -> np.ndarray:
    """int64 `[M, 4]`: the image, anchor, column and row that each object falls on; YOLOv1 has no anchors."""
    boxes, canvases = torch.from_numpy(view.boxes), torch.from_numpy(view.canvases[view.images])
    if isinstance(config, YOLOv1Config):
        counts: torch.Tensor | int = config.head.grid
        anchors, strides = torch.zeros(len(boxes), dtype=torch.int64), canvases.flip(1) / config.head.grid
    else:
        sides = torch.from_numpy(yolo_anchors(config, shapes))
        anchors = shape_iou(boxes, sides).argmax(dim=1)
        per_level = len(sides) // len(shapes.strides)
        levels = [stride for stride in shapes.strides for _ in range(per_level)]
        strides = torch.tensor(levels)[anchors][:, None].float()
        counts = (canvases.flip(1) / strides).long()
    cells = cells_of(boxes, strides, counts)
    images = torch.from_numpy(view.images)
    return np.asarray(torch.column_stack([images, anchors, cells]).numpy())


def _share(rows: Sequence[np.ndarray], views: Sequence[InputObjects]) -> float:
    return sum(map(len, rows)) / max(1, sum(len(view.rows) for view in views))


def _part(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")

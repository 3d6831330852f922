"""Anchors from the training boxes of a configuration, as the detector of that configuration will see them."""

from __future__ import annotations

import numpy as np
import torch

from detkit.config import UserError
from detkit.data.anchor_kmeans import kmeans_anchors, mean_iou
from detkit.data.build import build_dataset
from detkit.data.dataset import ImageDataset
from detkit.detectors.yolov2 import YOLOv2Config
from detkit.detectors.yolov3 import YOLOv3Config
from detkit.engine.settings import RunConfig
from detkit.nn.backbones import build_backbone
from detkit.nn.input import ImageInput, InputConfig, KeepConfig

CELL = 32  # px, the stride of darknet's networks


def describe_anchors(config: RunConfig, k: int, seed: int = 0) -> str:
    """The k anchors that fit the training boxes best, how well they do, and a line for the configuration."""
    dataset = build_dataset(config.data, "train", columns=())
    sides = box_shapes(dataset, config.model.input)
    if not len(sides):
        raise UserError(f"{dataset.name}: no object to take anchors from")
    anchors, cell = kmeans_anchors(sides, k, seed), anchor_cell(config)
    rule = config.model.input.resize
    size = "" if isinstance(rule, KeepConfig) else f" {rule.size}"
    rows = [f"{w:9.1f} x {h:6.1f} {w / cell:12.2f} x {h / cell:5.2f}" for w, h in anchors.tolist()]
    return "\n".join(
        [
            dataset.summary,
            f"{k} anchors of {len(sides):,} boxes (w x h), model.input.resize {rule.name}{size}",
            f"{'input px':>18} {f'cells of {cell}':>20}",
            *rows,
            f"mean IoU of a box with its best anchor: {mean_iou(sides, anchors):.4f}",
            _yaml_line(config, anchors),
        ]
    )


def box_shapes(dataset: ImageDataset, config: InputConfig) -> np.ndarray:
    """Float64 `[N, 2]`: width and height in input px of every box that is trained on, before augmentation."""
    place = ImageInput(config, CELL).place
    shapes = [np.empty((0, 2))]
    for index in range(len(dataset)):
        truth = dataset.ground_truth(index)
        boxes = truth.objects.take(~truth.objects.ignore).boxes.astype(np.float64)
        shapes.append((boxes[:, 2:] - boxes[:, :2]) * place(truth.image_id, truth.size).scale)
    return np.concatenate(shapes)


def anchor_cell(config: RunConfig) -> int:
    """Side of a cell in input px: YOLOv2 counts its anchors in those of its own level."""
    if not isinstance(config.model, YOLOv2Config):
        return CELL
    with torch.device("meta"):  # no weights: only its strides are asked for
        return build_backbone(config.model.backbone.model_copy(update={"weights": None})).out_strides[-1]


def _yaml_line(config: RunConfig, anchors: np.ndarray) -> str:
    """`anchors` in the unit and the nesting of the head: YOLOv2's are cells, YOLOv3's px, a list a level."""
    match config.model:
        case YOLOv2Config():
            cell = anchor_cell(config)
            return f"model.head, in cells of {cell}:\n    anchors: {(anchors / cell).round(3).tolist()}"
        case YOLOv3Config(head=head) if len(anchors) % len(head.anchors) == 0:
            levels = np.split(anchors.round(1), len(head.anchors))
            return f"model.head, in input px, a list a level:\n    anchors: {[level.tolist() for level in levels]}"
        case _:
            return f"in input px:\n    anchors: {anchors.round(1).tolist()}"

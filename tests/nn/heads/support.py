"""Targets and detections of heads that are tested alone."""

from collections.abc import Sequence
from typing import Any

import torch

from detkit.nn.heads.head import Head
from detkit.nn.heads.set_head import ClassTargets
from detkit.structures import Categories, Detections, ImageInfo, Objects, Target

Boxes = Sequence[tuple[float, float, float, float]]


def make_target(boxes: Boxes, labels: Sequence[int] | None = None, ignore: Sequence[bool] | None = None) -> Target:
    """Labels are 0, and nothing is ignored, unless given."""
    return Target(
        Objects(
            torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            torch.tensor(labels or [0] * len(boxes), dtype=torch.int64),
            torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool),
        )
    )


def class_targets(labels: torch.Tensor, weights: torch.Tensor, count: float = 1.0) -> ClassTargets:
    """Of predictions that all count, with boxes that are exact."""
    return ClassTargets(labels, torch.ones_like(weights), weights, torch.ones_like(weights), torch.tensor(count))


def detect(head: Head[Any], outputs: Any, *infos: ImageInfo) -> list[Detections]:
    """The detections of each image in its original pixels."""
    corners = torch.tensor([info.offset for info in infos], dtype=torch.float32)
    sides = torch.tensor([info.input_size[::-1] for info in infos], dtype=torch.float32)
    rows = head.detect(outputs, torch.cat([corners, corners + sides], dim=1))
    return rows.to_detections(infos, Categories.of_names(("cat", "dog", "cow")))

"""What the checkpoints of YOLOv5 and YOLOv7 share: layers that are numbered in the order in which they run, the last of
which predicts, with anchors in units of the stride."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from detkit.config import UserError
from detkit.nn.heads.yolo_v3 import Anchors

STRIDES = (8, 16, 32)  # px, of the three levels


def required_file(file: Path | None, source: str) -> Path:
    """`file`; raises UserError if there is none, as the published ones are pickled classes and not downloaded."""
    if file is None:
        raise UserError(
            f"{source}: expected {source}:FILE with tensors alone, as the published file is a pickled class of its "
            "package; docs/weights.md says how to save its tensors"
        )
    return file


def by_layer(state: Mapping[str, Tensor], publisher: str) -> dict[int, dict[str, Tensor]]:
    """The tensors of each layer in the order of the layers, by the rest of their keys.

    Keys are `model.3.conv.weight` or, where a prefix was taken off before, `3.conv.weight`. Raises UserError for
    others, and if batch norms are folded into the convolutions.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    if not state:
        raise UserError(f"not a {publisher}: there are no tensors")
    for key, tensor in state.items():
        match = re.fullmatch(r"(?:module\.)?(?:model\.)?(\d+)\.(.+)", key)
        if match is None:
            raise UserError(f"not the keys of a {publisher}: expected model.0.conv.weight and so on, found {key}")
        layers.setdefault(int(match[1]), {})[match[2]] = tensor
    if not any(re.search(r"(^|\.)running_mean$", key) for key in state):
        raise UserError(
            f"a {publisher} without batch norms: they are folded into the convolutions; save its state_dict() before "
            "it is fused"
        )
    return dict(sorted(layers.items()))


def anchors_of(state: Mapping[str, Tensor]) -> Anchors:
    """Width and height of the anchors in input px, a list for each level. Raises UserError if there are none."""
    tensor = next((tensor for key, tensor in state.items() if re.search(r"(^|\.)\d+\.anchors$", key)), None)
    if tensor is None or tensor.ndim != 3 or len(tensor) != len(STRIDES) or tensor.shape[2] != 2:
        found = "none" if tensor is None else str(list(tensor.shape))
        raise UserError(f"expected anchors [{len(STRIDES)}, A, 2] in the last layer, found {found}")
    return tuple(
        tuple((width * stride, height * stride) for width, height in level)
        for level, stride in zip(tensor.float().tolist(), STRIDES, strict=True)
    )


def num_classes_of(predict: Tensor, anchors: Anchors) -> int:
    """Of the weight of the convolution that predicts a box, an objectness and the classes for each anchor.

    Raises UserError if its rows cannot be divided so.
    """
    per_anchor, rest = divmod(len(predict), len(anchors[0]))
    if rest or per_anchor < 6:
        raise UserError(f"expected 5 + K predictions for each of {len(anchors[0])} anchors, found {len(predict)}")
    return per_anchor - 5

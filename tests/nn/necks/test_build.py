"""Every neck is built from its configuration."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from detkit.nn.necks import NeckConfig, build_neck
from detkit.nn.necks.extra_levels import ExtraLevels
from detkit.nn.necks.fpn import FPN
from detkit.nn.necks.neck import Neck
from detkit.nn.necks.yolo import Passthrough, YOLONeck


@pytest.mark.parametrize(
    ("fields", "kind", "strides"),
    [
        ({"name": "fpn", "out_channels": 8}, FPN, (16, 32, 64)),
        ({"name": "extra_levels", "out_channels": [8], "reduce": ["stride"]}, ExtraLevels, (16, 32, 64)),
        ({"name": "passthrough"}, Passthrough, (32,)),
        ({"name": "yolov3"}, YOLONeck, (16, 32)),
        ({"name": "yolov3_tiny"}, YOLONeck, (16, 32)),
    ],
)
@torch.no_grad()
def test_channels_and_strides_are_those_of_the_levels(
    fields: dict[str, Any], kind: type[Neck], strides: tuple[int, ...]
) -> None:
    config = TypeAdapter(NeckConfig).validate_python(fields, strict=False)
    neck = build_neck(config, (32, 64), (16, 32))
    assert type(neck) is kind
    assert neck.out_strides == strides
    levels = neck.eval()([torch.rand(1, 32, 8, 12), torch.rand(1, 64, 4, 6)])
    shapes = [tuple(level.shape[1:]) for level in levels]
    assert shapes == [(c, 128 // s, 192 // s) for c, s in zip(neck.out_channels, strides, strict=True)]
    if hasattr(config, "num_extra_levels"):
        assert len(levels) == 2 + config.num_extra_levels


def test_no_neck() -> None:
    assert build_neck(None, (16,), (32,)) is None

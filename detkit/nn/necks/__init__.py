"""Necks: feature levels to feature levels. `build_neck` builds the module of a `NeckConfig`."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from detkit.nn.necks.extra_levels import ExtraLevels, ExtraLevelsConfig
from detkit.nn.necks.fpn import FPN, FPNConfig
from detkit.nn.necks.neck import Neck
from detkit.nn.necks.yolo import Passthrough, PassthroughConfig, YOLONeck, YOLONeckConfig

NeckConfig = Annotated[
    FPNConfig | ExtraLevelsConfig | PassthroughConfig | YOLONeckConfig,
    Field(discriminator="name"),
]


def build_neck(config: NeckConfig | None, in_channels: Sequence[int], in_strides: Sequence[int]) -> Neck | None:
    """The neck on levels of these channels and strides, finest first; None for no neck."""
    match config:
        case None:
            return None
        case FPNConfig():
            return FPN(config, in_channels, in_strides)
        case ExtraLevelsConfig():
            return ExtraLevels(config, in_channels, in_strides)
        case PassthroughConfig():
            return Passthrough(in_channels, in_strides)
        case YOLONeckConfig():
            return YOLONeck(config, in_channels, in_strides)

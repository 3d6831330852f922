"""CSPDarknet as YOLOX (Ge et al., arXiv 2107.08430) and YOLOv5 (release 6.0) have it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig
from detkit.nn.csp import CSP, Focus, PooledPyramid, conv, spatial_conv

STRIDES = (2, 4, 8, 16, 32)


class CSPDarknetConfig(StagedConfig):
    """Defaults: that of YOLOX-s. The stages have 64, 128, 256, 512 and 1024 channels times `width`."""

    name: Literal["csp_darknet"] = "csp_darknet"
    strides: tuple[int, ...] = (8, 16, 32)
    form: Literal["yolox", "yolov5"] = "yolox"  # Focus, and pools before the last blocks; or 6x6, and pools after them
    depth: float = Field(1 / 3, gt=0)  # factor on the number of blocks of a stage
    width: float = Field(0.5, gt=0)  # factor on the channels
    depthwise: bool = False  # 3x3 convolutions of each channel alone (YOLOX-nano)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES


def scaled_depth(blocks: int, depth: float) -> int:
    """The number of blocks, `blocks` times `depth`, of which at least one stays."""
    return max(round(blocks * depth), 1)


def build_csp_darknet(config: CSPDarknetConfig) -> StagedBackbone:
    yolox, depthwise = config.form == "yolox", config.depthwise
    channels = [int(64 * 2**stage * config.width) for stage in range(5)]
    # YOLOX rounds the number of blocks of its first stage and multiplies it; YOLOv5 rounds each.
    base = scaled_depth(3, config.depth)
    blocks = [base, 3 * base, 3 * base, base] if yolox else [scaled_depth(n, config.depth) for n in (3, 6, 9, 3)]
    stem = Focus(channels[0]) if yolox else conv(3, channels[0], 6, 2, padding=2)
    stages = [Stage({"stem": stem}, STRIDES[0], channels[0])]
    for number, count in enumerate(blocks, start=1):
        before, here = channels[number - 1 : number + 1]
        last = number == len(blocks)
        layers = [
            spatial_conv(before, here, 2, depthwise=depthwise),
            CSP(here, here, count, shortcut=not (yolox and last), depthwise=depthwise),
        ]
        if last:
            layers.insert(1 if yolox else 2, PooledPyramid(here, here))
        stages.append(Stage({f"stage{number}": nn.Sequential(*layers)}, STRIDES[number], here))
    return StagedBackbone(stages, config.strides, config.frozen_stages)

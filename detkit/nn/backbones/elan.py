"""The trunk of YOLOv7 (Wang, Bochkovskiy, Liao, arXiv 2207.02696): stages of efficient layer aggregation."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn

from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig
from detkit.nn.csp import conv
from detkit.nn.elan import ELAN, Downsample, Taps

STRIDES = (2, 4, 8, 16, 32)


class ELANTable(NamedTuple):
    """
    stem    channels of the first convolutions
    hidden  channels within each stage
    out     channels of each stage
    convs   3x3 convolutions in a stage, and which of their outputs are joined
    """

    stem: tuple[int, ...]
    hidden: tuple[int, ...]
    out: tuple[int, ...]
    convs: int
    taps: Taps


TABLES = {
    "elan_tiny": ELANTable((32, 64), (32, 64, 128, 256), (64, 128, 256, 512), 2, "in_order"),
    "elan": ELANTable((32, 64, 64, 128), (64, 128, 256, 256), (256, 512, 1024, 1024), 4, "pairs"),
    "elan_x": ELANTable((40, 80, 80, 160), (64, 128, 256, 256), (320, 640, 1280, 1280), 6, "pairs"),
}


class ELANConfig(StagedConfig):
    """elan_tiny, elan and elan_x: the trunks of yolov7-tiny, yolov7 and yolov7x."""

    name: Literal["elan_tiny", "elan", "elan_x"] = "elan"
    strides: tuple[int, ...] = (8, 16, 32)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return STRIDES


def build_elan(config: ELANConfig) -> StagedBackbone:
    table, tiny = TABLES[config.name], config.name == "elan_tiny"
    act = "leaky" if tiny else "swish"
    steps = (2, 2) if tiny else (1, 2, 1, 2)
    stem = [
        conv(before, channels, 3, step, act=act)  # type: ignore[arg-type]
        for before, channels, step in zip((3, *table.stem), table.stem, steps, strict=False)
    ]
    half = 1 if tiny else 3  # convolutions before those of stride 4
    stages = [Stage({"stem": nn.Sequential(*stem[:half])}, STRIDES[0], table.stem[half - 1])]
    channels = table.stem[-1]
    for number, (hidden, out) in enumerate(zip(table.hidden, table.out, strict=True), start=1):
        layers: list[nn.Module] = [*stem[half:]] if number == 1 else []
        if number > 1:
            layers.append(nn.MaxPool2d(2, 2) if tiny else Downsample(channels, channels // 2))
        layers.append(ELAN(channels, out, side=hidden, hidden=hidden, convs=table.convs, taps=table.taps, act=act))  # type: ignore[arg-type]
        channels = out
        stages.append(Stage({f"stage{number}": nn.Sequential(*layers)}, STRIDES[number], out))
    return StagedBackbone(stages, config.strides, config.frozen_stages)

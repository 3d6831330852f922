"""The data set of a configuration. Adding a format: a line in the union, a case in the `match`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from detkit.data.action_tubes import ActionTubesConfig, read_action_tubes
from detkit.data.ava import AVAConfig, read_ava
from detkit.data.checks import Check, check_images
from detkit.data.clips import ClipsConfig, read_clips
from detkit.data.coco import COCOConfig, read_coco
from detkit.data.dataset import ImageDataset
from detkit.data.moving_shapes import MovingShapesConfig, read_moving_shapes
from detkit.data.shapes import ShapesConfig, read_shapes
from detkit.data.voc import VOCConfig, read_voc
from detkit.data.yolo import YOLODataConfig, read_yolo
from detkit.structures import COLUMNS, Column

DataConfig = Annotated[
    VOCConfig
    | COCOConfig
    | YOLODataConfig
    | ShapesConfig
    | ClipsConfig
    | AVAConfig
    | ActionTubesConfig
    | MovingShapesConfig,
    Field(discriminator="name"),
]


def build_dataset(
    config: DataConfig,
    split: Literal["train", "val"],
    check: Check = check_images,
    columns: Collection[Column] = COLUMNS,
) -> ImageDataset:
    """The checked data set of a split; both splits have the same categories. Raises DataError.

    columns  that are read beside the boxes where the files have them; who needs none saves the time and memory
    """
    match config:
        case VOCConfig():
            return read_voc(config, split, check, columns)
        case COCOConfig():
            return read_coco(config, split, check, columns)
        case YOLODataConfig():
            return read_yolo(config, split, check, columns)
        case ShapesConfig():
            return read_shapes(config, split, check, columns)
        case ClipsConfig():
            return read_clips(config, split, check)
        case AVAConfig():
            return read_ava(config, split, check)
        case ActionTubesConfig():
            return read_action_tubes(config, split, check)
        case MovingShapesConfig():
            return read_moving_shapes(config, split, check)

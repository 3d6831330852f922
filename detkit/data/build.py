"""The data set of a configuration. Adding a format: a line in the union, a case in the `match`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from detkit.data.checks import Check, check_images
from detkit.data.coco import COCOConfig, read_coco
from detkit.data.dataset import ImageDataset
from detkit.data.shapes import ShapesConfig, read_shapes
from detkit.data.voc import VOCConfig, read_voc
from detkit.data.yolo import YOLODataConfig, read_yolo

DataConfig = Annotated[VOCConfig | COCOConfig | YOLODataConfig | ShapesConfig, Field(discriminator="name")]


def build_dataset(
    config: VOCConfig | COCOConfig | YOLODataConfig | ShapesConfig,
    split: Literal["train", "val"],
    check: Check = check_images,
) -> ImageDataset:
    """The checked data set of a split; both splits have the same categories. Raises DataError."""
    match config:
        case VOCConfig():
            return read_voc(config, split, check)
        case COCOConfig():
            return read_coco(config, split, check)
        case YOLODataConfig():
            return read_yolo(config, split, check)
        case ShapesConfig():
            return read_shapes(config, split, check)

"""Detections as a data set, to be corrected in an annotation tool and trained with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detkit.config import UserError
from detkit.data.checks import LabelPolicy, RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.engine.convert import write_dataset
from detkit.engine.drawing import MIN_KEYPOINT_SCORE
from detkit.structures import Categories

UNUSED = "N/A"  # what public models call a class that was never used


def refuse_existing(folder: Path, formats: Iterable[str]) -> None:
    """Raises UserError if a data set stands where one is to be written: somebody may have corrected it."""
    for name in formats:
        if (folder / name).exists():
            raise UserError(f"{folder / name}: exists already, and may hold corrected labels; choose another --output")


def write_data_sets(
    records: Iterable[Mapping[str, Any]], categories: Categories, folder: Path, formats: Sequence[str]
) -> list[str]:
    """Writes the pictures and detections of `records` as `folder/FORMAT` each; returns lines for the user."""
    named = [label for label, name in enumerate(categories.names) if name != UNUSED]
    own = replace(
        categories,
        names=tuple(categories.names[label] for label in named),
        ids=tuple(categories.ids[label] for label in named),
    )
    images = [_raw_image(record, own) for record in records if "detections" in record]
    if not any("keypoints" in item.columns for image in images for item in image.objects):
        own = replace(own, keypoints=None)  # those of the data, which this detector does not give
    if not images:
        return [f"no {' and '.join(formats)}: there is no picture to write"]
    dataset = ImageDataset(images, name="train", categories=own, check=_as_they_are)
    return [line for name in formats for line in write_dataset({"train": dataset}, own, folder / name, name)]


def _raw_image(record: Mapping[str, Any], categories: Categories) -> RawImage:
    path = record.get("picture", record["file"])
    label_of = {name: label for label, name in enumerate(categories.names)}
    objects = [
        RawObject(
            f"detection {number}", label_of[detection["class"]], tuple(detection["box"]), columns=_columns(detection)
        )
        for number, detection in enumerate(record["detections"])
        if detection["class"] in label_of
    ]
    return RawImage(path, path, path, (record["height"], record["width"]), objects)


def _columns(detection: Mapping[str, Any]) -> dict[str, Any]:
    """Mask and keypoints. A keypoint that would not be drawn is not labelled."""
    columns: dict[str, Any] = {}
    if mask := detection.get("mask"):
        columns["masks"] = mask["counts"].encode("ascii")
    if keypoints := detection.get("keypoints"):
        likely = [point.get("score", np.inf) > MIN_KEYPOINT_SCORE for point in keypoints]
        points = [
            (point["x"], point["y"], 2) if sure else (0, 0, 0) for point, sure in zip(keypoints, likely, strict=True)
        ]
        columns["keypoints"] = np.array(points, np.float32)
    return columns


def _as_they_are(
    images: Sequence[RawImage], _: str, __: LabelPolicy, ___: bool, ____: float = 0.0
) -> tuple[list[RawImage], Counter[str]]:
    """In place of the check of a data set: a detector's boxes lie in their pictures, which have just been read."""
    return list(images), Counter()

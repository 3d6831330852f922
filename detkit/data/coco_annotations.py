"""The annotations of a COCO file as objects."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detkit.data.checks import MAX_LINES, Box, DataError, RawObject
from detkit.data.coco_classes import COCOClasses, Rows
from detkit.data.coco_ids import IdTable, plain_id
from detkit.data.coco_keypoints import read_keypoints
from detkit.data.coco_segmentation import read_segmentation, segmentation_box
from detkit.data.flags import parse_flag
from detkit.structures import Column, Size

MATCHED = "annotation matched by an id that is text here and a number there"
FROM_SEGMENTATION = "object without a bbox read as the box around its segmentation"
NO_PIXEL = "object whose mask has no pixel in the picture"
SHORT = "polygon of less than three points left out"
UNNAMED = "object with keypoints left out, as its category names none"
OTHER_IMAGES = "annotation of images that are not listed left out"
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)


@dataclass
class COCOAnnotations:
    """Reads the annotations of a file.

    images    the rows of its images by id
    columns   what is read beside boxes
    points    for each row of its categories, how many keypoints an object of it has, -1: they are not read. Empty
              unless `columns` have keypoints
    sizes     (h, w) of the images by row, as far as they are known; those that only run lengths say are added
    by_image  the objects of each row of its images
    notes     counts of what is unusual, for the summary
    """

    classes: COCOClasses
    images: IdTable
    path: Path
    columns: Collection[Column] = ()
    points: Sequence[int] = ()
    sizes: dict[int, Size] = field(default_factory=dict)
    by_image: defaultdict[int, list[RawObject]] = field(default_factory=lambda: defaultdict(list))
    notes: Counter[str] = field(default_factory=Counter)

    def read(self, annotations: Rows) -> None:
        """Raises DataError if an annotation has no image id, or if none is of one of the images."""
        others: list[str] = []  # annotations of images that are not there
        without: list[str] = []  # and those of no image at all
        unknown: Counter[str] = Counter()  # objects of classes that the training file does not have
        for number, row in enumerate(annotations):
            where = f"annotation {row['id']!r}" if row.get("id") is not None else f"annotations[{number}]"
            image, image_as_written = self.images.find(row.get("image_id"))
            category, category_as_written = self.classes.table.find(row.get("category_id"))
            if image is None:
                line = f"  {where}: the image id {row.get('image_id')!r} is not among the images"
                (others if plain_id(row.get("image_id")) is not None else without).append(line)
            elif category is not None and self.classes.labels[category] < 0:
                unknown[self.classes.names[category]] += 1
            else:
                self.notes[MATCHED] += not (image_as_written and category_as_written)
                self.by_image[image].append(self._object(row, where, image, category))
        faults = [*without, *others] if len(without) + len(others) == len(annotations) else without
        if (
            faults
        ):  # some images without the others are a part of a data set; a file that fits none of its images is not
            more = [f"  ... and {len(faults) - MAX_LINES} more"] if len(faults) > MAX_LINES else []
            raise DataError("\n".join([f"{self.path}: annotations of unknown images", *faults[:MAX_LINES], *more]))
        listed = ", ".join(f"{name} {count}" for name, count in unknown.most_common())
        self.notes[OTHER_IMAGES] = len(others)
        self.notes[f"object of classes unknown to train left out ({listed})"] = unknown.total()

    def _object(self, row: dict[str, Any], where: str, image: int, category: int | None) -> RawObject:
        if category is None:
            known = ", ".join(map(str, self.classes.table.ids))
            fault = f"the category id {row.get('category_id')!r} is not among the categories; known ids: {known}"
            return RawObject(where, -1, NO_BOX, fault)
        box = coco_box(row["bbox"]) if row.get("bbox") else segmentation_box(row.get("segmentation"))
        self.notes[FROM_SEGMENTATION] += box is not None and not row.get("bbox")
        flags = {key: parse_flag(row.get(key)) for key in ("iscrowd", "ignore")}
        unclear = [key for key, flag in flags.items() if flag is None]
        further, problem = self._further_columns(row, image, category)
        if box is None:
            problem = f"expected 'bbox' [x, y, width, height], got {row.get('bbox')!r}"
        elif unclear:
            problem = f"{unclear[0]}: expected 0 or 1, got {row[unclear[0]]!r}"
        columns: dict[str, Any] = {"ignore": any(flags.values())}
        area = coco_number(row.get("area"))
        if area is not None:
            columns["area"] = area
        return RawObject(where, self.classes.labels[category], box or NO_BOX, problem, columns | further)

    def _further_columns(self, row: dict[str, Any], image: int, category: int) -> tuple[dict[str, Any], str | None]:
        """The mask and the keypoints of an annotation, as far as it has them and they are read, and the problem."""
        further: dict[str, Any] = {}
        faults: list[str | None] = []
        if "masks" in self.columns:
            segmentation = read_segmentation(row.get("segmentation"), self.sizes.get(image))
            if segmentation.size is not None:
                self.sizes.setdefault(image, segmentation.size)
            if segmentation.mask is not None:
                further["masks"] = segmentation.mask
            self.notes[SHORT] += segmentation.short
            self.notes[NO_PIXEL] += segmentation.empty
            faults.append(segmentation.problem)
        if "keypoints" in self.columns and (value := row.get("keypoints")):
            points = self.points[category]
            self.notes[UNNAMED] += points == 0
            keypoints, fault = read_keypoints(value, points) if points > 0 else (None, None)
            further |= {} if keypoints is None else {"keypoints": keypoints}
            faults.append(fault)
        return further, next(filter(None, faults), None)


def coco_number(value: Any) -> float | None:
    """The finite number that is written as one or as text; None for anything else."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def coco_box(bbox: Any) -> Box | None:
    """xyxy of COCO's `[x, y, width, height]`; None if it is not a list of four numbers, which may be text."""
    if not isinstance(bbox, list):
        return None
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        return None
    return x, y, x + width, y + height

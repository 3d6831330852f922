"""The annotations of a COCO file as objects."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detkit.data.checks import MAX_LINES, Box, DataError, RawObject
from detkit.data.coco_classes import COCOClasses, Rows
from detkit.data.coco_ids import IdTable, plain_id
from detkit.data.coco_segmentation import segmentation_box
from detkit.data.flags import parse_flag

MATCHED = "annotation matched by an id that is text here and a number there"
FROM_SEGMENTATION = "object without a bbox read as the box around its segmentation"
OTHER_IMAGES = "annotation of images that are not listed left out"
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)


@dataclass
class COCOAnnotations:
    """Reads the annotations of a file.

    images    the rows of its images by id
    by_image  the objects of each row of its images
    notes     counts of what is unusual, for the summary
    """

    classes: COCOClasses
    images: IdTable
    path: Path
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
                self.by_image[image].append(self._object(row, where, category))
        faults = [*without, *others] if len(without) + len(others) == len(annotations) else without
        if (
            faults
        ):  # some images without the others are a part of a data set; a file that fits none of its images is not
            more = [f"  ... and {len(faults) - MAX_LINES} more"] if len(faults) > MAX_LINES else []
            raise DataError("\n".join([f"{self.path}: annotations of unknown images", *faults[:MAX_LINES], *more]))
        listed = ", ".join(f"{name} {count}" for name, count in unknown.most_common())
        self.notes[OTHER_IMAGES] = len(others)
        self.notes[f"object of classes unknown to train left out ({listed})"] = unknown.total()

    def _object(self, row: dict[str, Any], where: str, category: int | None) -> RawObject:
        if category is None:
            known = ", ".join(map(str, self.classes.table.ids))
            fault = f"the category id {row.get('category_id')!r} is not among the categories; known ids: {known}"
            return RawObject(where, -1, NO_BOX, fault)
        box = coco_box(row["bbox"]) if row.get("bbox") else segmentation_box(row.get("segmentation"))
        self.notes[FROM_SEGMENTATION] += box is not None and not row.get("bbox")
        flags = {key: parse_flag(row.get(key)) for key in ("iscrowd", "ignore")}
        unclear = [key for key, flag in flags.items() if flag is None]
        problem: str | None = None
        if box is None:
            problem = f"expected 'bbox' [x, y, width, height], got {row.get('bbox')!r}"
        elif unclear:
            problem = f"{unclear[0]}: expected 0 or 1, got {row[unclear[0]]!r}"
        columns: dict[str, Any] = {"ignore": any(flags.values())}
        area = coco_number(row.get("area"))
        if area is not None:
            columns["area"] = area
        return RawObject(where, self.classes.labels[category], box or NO_BOX, problem, columns)


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

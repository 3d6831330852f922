"""A copy of the data of a configuration without the flaws that need no person to decide about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detkit.config import UserError
from detkit.data.build import DataConfig
from detkit.data.checks import RawImage, RawObject
from detkit.data.coco import COCOConfig
from detkit.data.dataset import ImageDataset, plural
from detkit.data.shapes import ShapesConfig
from detkit.data.voc import VOCConfig
from detkit.data.voc_files import find_files
from detkit.data.without_boxes import beside_coco, beside_voc, beside_yolo
from detkit.data.writers.pictures import name_pictures, place
from detkit.data.yolo import YOLODataConfig
from detkit.engine.convert import WRITERS, complete_or_not_at_all
from detkit.engine.settings import RunConfig
from detkit.inspect.doctor.labels import ONE_PIXEL, overlapping_pairs
from detkit.inspect.doctor.reading import FlawCode, Split, read_splits

CHANGES: dict[FlawCode, str] = {
    "box-empty": "box removed: empty",
    "box-not-finite": "box removed: not finite",
    "box-outside": "box removed: outside of the picture",
    "box-over-border": "box cut at the border",
    "size-disagrees": "size of a picture corrected",
}
NOT_COPIED: dict[FlawCode, str] = {
    "picture-unreadable": "picture that cannot be read: not in the copy",
    "annotation-unreadable": "picture whose annotation cannot be read: not in the copy",
    "object-unreadable": "object that cannot be read, as one of an unknown class: not in the copy",
}
TWICE, ONE_PIXEL_BOX = "box removed: repeats another", "box removed: a side of at most one pixel"
TWO_CLASSES = "box of two classes: one of them is wrong"
EMPTIED = "picture without any box left: not in the copy, as its objects would be background there"
SWAPPED = "picture whose annotated sides were swapped: look whether its boxes fit"


def check_folder(folder: Path, data: DataConfig) -> None:
    """Raises UserError unless the folder is new or empty and outside of that of the data, which are no videos."""
    if data.has_videos:
        raise UserError(f"--fix {folder}: mends pictures, and {data.name} has videos; correct their files by hand")
    root = Path(data.root)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--fix {folder}: exists already and is not empty; name another folder")
    if root.resolve() in folder.resolve().parents:
        raise UserError(f"--fix {folder}: lies in the data that it would mend, {root}; name a folder elsewhere")


def mend(config: RunConfig, folder: Path) -> list[str]:
    """Writes both splits of the data to `folder` in their own format. The pictures become further names of the files.

    Returns lines for the user: what was changed, what only a person can decide, what the copy lacks, and the section
    `data` that reads it. Raises UserError if the folder holds anything, or cannot be written.
    """
    check_folder(folder, config.data)
    data = config.data
    if isinstance(data, VOCConfig):  # otherwise the mark would be lost
        data = data.model_copy(update={"difficult": "ignore"})
    splits = read_splits(data)
    changes, left = _flaw_counts(splits)
    mended: dict[str, ImageDataset] = {split.name: _mended(split, changes, left) for split in splits}
    format_name = data.format if isinstance(data, ShapesConfig) else data.name
    writer: Any = WRITERS[format_name]
    lost = _not_about_boxes(data, splits)
    pictures = name_pictures(mended, one_folder=writer.ONE_FOLDER, lost=lost)
    categories = splits[0].dataset.categories
    with complete_or_not_at_all(folder) as aside:
        files = [(p.source, aside / writer.picture_path(name, p.name)) for name in pictures for p in pictures[name]]
        counts = place(files, copy=False)
        writer.write(aside, pictures, categories, lost)
    settings = writer.settings(folder, list(pictures), categories)
    section = yaml.safe_dump(settings, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    written = ", ".join(f"{name} {len(each):,}" for name, each in pictures.items())
    return [
        f"mended copy: {folder}: {', '.join(plural(n, noun) for noun, n in counts.items())}, splits {written}",
        *(_listed("changed", changes) or ["nothing had to be changed"]),
        *_listed("left, because only a person can decide", left),
        *_listed(f"not about boxes, and not in the copy ({format_name})", lost),
        f"next, in a configuration: data: {section.strip()}",
    ]


def _flaw_counts(splits: Sequence[Split]) -> tuple[Counter[str], Counter[str]]:
    """What reading has changed already, and what it has left out."""
    changes, left = Counter[str](), Counter[str]()
    for flaw in (flaw for split in splits for flaw in split.flaws):
        if flaw.code in CHANGES:
            changes[CHANGES[flaw.code]] += 1
        else:
            left[NOT_COPIED[flaw.code]] += 1
        left[SWAPPED] += "swapped" in flaw.place.text and flaw.code == "size-disagrees"
    return changes, left


def _mended(split: Split, changes: Counter[str], left: Counter[str]) -> ImageDataset:
    """The data set without boxes that repeat others or are one pixel wide."""
    dataset, objects = split.dataset, split.dataset.objects
    first, second = overlapping_pairs(split)
    same = objects.labels[first] == objects.labels[second]
    repeated = np.isin(np.arange(len(objects)), second[same])
    thin = (objects.boxes[:, 2:] - objects.boxes[:, :2] <= ONE_PIXEL).any(axis=1)
    changes[TWICE] += int(repeated.sum())
    changes[ONE_PIXEL_BOX] += int((thin & ~repeated).sum())
    left[TWO_CLASSES] += len(np.unique(second[~same]))
    flawed = {flaw.place.image_id for flaw in split.flaws if flaw.code not in ("size-disagrees", "picture-unreadable")}
    starts = np.searchsorted(dataset.image_of_object, np.arange(len(dataset) + 1))
    images = []
    for index in range(len(dataset)):
        truth = dataset.ground_truth(index)
        rows = slice(starts[index], starts[index + 1])
        image = _raw_image(truth.image_id, dataset.path(index), truth, ~(repeated | thin)[rows])
        if not image.objects and (len(truth.objects) or truth.image_id in flawed):
            left[EMPTIED] += 1
        else:
            images.append(image)
    return ImageDataset(images, name=dataset.name, categories=dataset.categories, decode=False)


def _raw_image(image_id: Any, path: str, truth: Any, remaining: np.ndarray) -> RawImage:
    objects = truth.objects.take(remaining)
    rows = zip(objects.labels.tolist(), objects.boxes.tolist(), objects.ignore.tolist(), objects.area, strict=True)
    items = [
        RawObject(
            f"object {number}",
            label,
            (x1, y1, x2, y2),
            None,
            {"ignore": ignore, "area": area, **_further_columns(objects, number)},
        )
        for number, (label, (x1, y1, x2, y2), ignore, area) in enumerate(rows)
    ]
    return RawImage(image_id, path, path, truth.size, items)


def _further_columns(objects: Any, row: int) -> dict[str, Any]:
    further = {} if objects.masks is None else {"masks": objects.masks.decode(row)}
    return further if objects.keypoints is None else {**further, "keypoints": objects.keypoints[row]}


def _not_about_boxes(data: DataConfig, splits: Sequence[Split]) -> Counter[str]:
    """Counts of what stands in the files besides objects and classes, which the writers leave out."""
    lost = Counter[str]()
    match data:
        case COCOConfig():
            for name in (data.train_annotations, data.val_annotations):
                lost += beside_coco(Path(data.root, name)) if name else Counter()
        case VOCConfig():
            files = find_files(Path(data.root), tuple(dict.fromkeys((*data.train, *data.val))), "lists")
            lost += beside_voc({file.xml for file in files if file.xml})
        case YOLODataConfig():
            lost += beside_yolo({split.dataset.path(i) for split in splits for i in range(len(split.dataset))})
    return +lost


def _listed(title: str, counts: Counter[str]) -> list[str]:
    lines = [f"  {plural(number, noun)}" for noun, number in counts.most_common() if number]
    return [f"{title}:", *lines] if lines else []

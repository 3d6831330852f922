"""PASCAL VOC: one XML file a picture, in PASCAL's layout or beside the pictures.

Legend: a split such as `2007_trainval` is `<year>_<list>`: `root/VOC2007/ImageSets/Main/trainval.txt`.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from detkit.data.checks import Check, DataError, FilesConfig, NoValidation, RawImage, RawObject, check_images
from detkit.data.classes import choose_classes, merge_classes
from detkit.data.dataset import ImageDataset
from detkit.data.voc_files import find_files, pair_pictures
from detkit.data.voc_segmentation import SegmentationObjects, read_objects
from detkit.data.voc_xml import Annotation, read_annotation
from detkit.formats import VOC_MIN_SIDE
from detkit.structures import COLUMNS, Categories, Column

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# xmin = xmax is one pixel wide in VOC's inclusive pixels, but nobody annotates one pixel: such a box is a stray click.


def _allow_text(schema: dict[str, Any]) -> None:
    """In the JSON schema: one split as text, or none."""
    schema["type"] = ["array", "string", "null"]


Splits = Annotated[tuple[str, ...], Field(json_schema_extra=_allow_text)]


class VOCConfig(FilesConfig):
    """A VOC devkit, PASCAL's own or one in its layout, or folders of pictures with VOC's XML files beside them.

    root       the devkit: the folder that holds VOC2007, VOC2012, ...; or the one that holds the folders or lists
    train      splits, several at once: `<year>_<list>`; or a folder below root (`.` is root itself); or a list in
               root/ImageSets. A list has one id a line, or PASCAL's `id 1` and `id -1`
    val        likewise; none: nothing is measured
    classes    null: the 20 of VOC; a list: these names in this order, others are left out; `auto`: the names that occur
               in `train`, sorted
    difficult  training either ignores difficult objects, `ignore` (py-faster-rcnn), or learns them, `train` (Fast
               R-CNN, Detectron2). Evaluation always ignores them
    """

    at_test: ClassVar[tuple[str, ...]] = ("root", "classes", "merge", "on_bad_label", "check_images", "train", "val")

    name: Literal["voc"] = "voc"
    train: Splits
    val: Splits = ()
    classes: tuple[str, ...] | Literal["auto"] | None = None  # type: ignore[assignment]
    difficult: Literal["ignore", "train"] = "ignore"

    @field_validator("train", "val", mode="before")
    @classmethod
    def _list_of_one(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        return tuple(value or ()) if value is None or isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class _Image:
    """A picture and its annotation.

    name          the id in messages and results
    where         the file that a message names
    segmentation  the file of its objects' masks, where there is one
    """

    name: str
    path: Path
    where: Path
    annotation: Annotation
    segmentation: Path | None


def read_voc(
    config: VOCConfig,
    split: Literal["train", "val"],
    check: Check = check_images,
    columns: Collection[Column] = COLUMNS,
) -> ImageDataset:
    """Reads the lists of `split`. Raises DataError naming the file and the fix, NoValidation if `val` is empty."""
    lists = config.train if split == "train" else config.val
    if split == "val" and not lists:
        raise NoValidation(
            "data.val: no split to measure on is given; name one, such as 2007_val or a folder of pictures"
        )
    images, notes = _read_split(config, split)
    known = _known_classes(config, images if split == "train" else None)
    named = [name for new, olds in config.merge.items() for name in (*olds, new)]
    occurring = [] if config.classes is None else sorted(_names(images))  # of VOC's 20, any other is a mistake
    every = Categories.of_names(list(dict.fromkeys((*known, *named, *occurring))))
    if config.classes == "auto":
        config = config.model_copy(update={"classes": tuple(sorted(set(merge_classes(known, config.merge))))})
    ignore_difficult = split == "val" or config.difficult == "ignore"
    labels = {class_name: label for label, class_name in enumerate(every.names)}
    masks = _read_masks(images, notes) if "masks" in columns else [SegmentationObjects()] * len(images)
    raw = [_raw_image(image, labels, ignore_difficult, each) for image, each in zip(images, masks, strict=True)]
    name = f"voc {split} ({', '.join(lists)})"
    raw, categories, left_out = choose_classes(raw, every, config, name)
    return ImageDataset(
        raw,
        name=name,
        categories=Categories.of_names(categories.names),
        on_bad_label=config.on_bad_label,
        decode=config.check_images,
        check=check,
        min_side=VOC_MIN_SIDE,
        notes={**notes, **left_out},
    )


def _read_split(config: VOCConfig, split: Literal["train", "val"]) -> tuple[list[_Image], Counter[str]]:
    """The pictures with their annotations, and counts of what was unusual."""
    files = find_files(Path(config.root), config.train if split == "train" else config.val, f"data.{split}")
    once = list({file.name: file for file in files}.values())
    usage = "read once" if split == "val" else "kept"  # a list may repeat pictures of rare classes
    notes = Counter({f"picture listed again and {usage}": len(files) - len(once)})
    files = once if split == "val" else files
    annotations = [read_annotation(file.xml) if file.xml else None for file in files]
    images = []
    for file, annotation, path, note in pair_pictures(files, annotations):
        segmentation = file.folder.segmentation_of(file.image_id)
        images.append(_Image(file.name, path, file.xml or path, annotation, segmentation))
        notes.update(filter(None, (note, *(item.note for item in annotation.objects))))
    return images, notes


def _known_classes(config: VOCConfig, train: Sequence[_Image] | None) -> tuple[str, ...]:
    """The classes of both splits before merging. `auto` takes those of `train`, which is read here unless given."""
    if config.classes is None:
        return VOC_CLASSES
    if config.classes != "auto":
        return config.classes
    images = train if train is not None else _read_split(config, "train")[0]
    if names := _names(images):
        return tuple(sorted(names))
    problems = [f"{image.where}: {image.annotation.problem}" for image in images if image.annotation.problem]
    problems += [f"{i.where}: {item.where}: {item.problem}" for i in images for item in i.annotation.objects]
    reason = f"; {len(problems)} problems such as {problems[0]}" if problems else ": no XML file has an <object>"
    raise DataError(f"data.classes: auto: no object with a class in {', '.join(config.train)}{reason}")


def _names(images: Sequence[_Image]) -> set[str]:
    return {item.name for image in images for item in image.annotation.objects if item.name}


def _read_masks(images: Sequence[_Image], notes: Counter[str]) -> list[SegmentationObjects]:
    """The masks of each image; those of one without a file are empty."""

    def read(image: _Image) -> SegmentationObjects:
        numbers = [item.number for item in image.annotation.objects]
        if image.segmentation is None or image.annotation.problem:
            return SegmentationObjects()
        return read_objects(image.segmentation, numbers, image.annotation.size)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        masks = list(pool.map(read, images))
    notes["mask of SegmentationObject that is no object's left out"] += sum(each.others for each in masks)
    return masks


def _raw_image(
    image: _Image, labels: Mapping[str, int], ignore_difficult: bool, segmentation: SegmentationObjects
) -> RawImage:
    annotation = image.annotation
    objects = []
    masks = segmentation.masks or [None] * len(annotation.objects)
    for item, mask in zip(annotation.objects, masks, strict=True):
        columns: dict[str, Any] = {"ignore": item.difficult and ignore_difficult}
        if mask is not None:
            columns["masks"] = mask
        problem = item.problem or _class_fault(item.name, labels)
        objects.append(RawObject(item.where, labels.get(item.name, -1), item.box, problem, columns))
    problem = annotation.problem or segmentation.problem
    size = annotation.size or segmentation.size
    return RawImage(image.name, str(image.path), str(image.where), size, objects, problem)


def _class_fault(name: str, class_names: Collection[str]) -> str | None:
    """The problem of a class name that is not known, with the nearest one that is; None for a known name."""
    if name in class_names:
        return None
    close = difflib.get_close_matches(name, class_names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(class_names)}."
    return f"the class {name!r} is not known; {hint} Set data.classes to your own names, or to auto (those in train)"

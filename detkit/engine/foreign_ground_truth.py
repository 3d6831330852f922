"""Reads the ground truth that foreign results are measured on: a COCO file or a VOC folder, without their pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from detkit.config import UserError
from detkit.data.check_cache import picture_sizes
from detkit.data.checks import RawImage, RawObject
from detkit.data.coco import picture_name, read_image_ids, read_tables
from detkit.data.coco_annotations import COCOAnnotations, coco_number
from detkit.data.coco_classes import coco_classes
from detkit.data.coco_ids import IdTable
from detkit.data.coco_keypoints import COCOKeypoints, coco_keypoints
from detkit.data.dataset import plural
from detkit.data.picture_names import find
from detkit.data.voc import VOC_CLASSES
from detkit.data.voc_files import LISTS, VOCFolder, find_files, read_list
from detkit.data.voc_xml import Annotation, VOCObject, read_annotation
from detkit.structures import Categories, Column, EncodedMasks, GroundTruth, Objects, Size

ImageSet = tuple[VOCFolder, list[str]]  # its files, and the ids in them


@dataclass(frozen=True, eq=False)
class AnnotatedImages:
    """Annotated images as their files have them: no box is cut or left out.

    name        in messages
    file_names  of the pictures, one an image
    paths       of the pictures; None unless all of them are at hand
    class_ids   the ids that the files use for classes, which may be several for one
    labels      the class of each of `class_ids`, -1 for a heading
    notes       what was unusual, in sentences
    """

    name: str
    categories: Categories
    ground_truth: Sequence[GroundTruth]
    file_names: Sequence[str]
    paths: Sequence[str] | None
    class_ids: IdTable
    labels: Sequence[int]
    notes: tuple[str, ...] = ()


def read_ground_truth(
    path: Path,
    pictures: Path | None = None,
    image_set: str | None = None,
    likely_set: str | None = None,
    columns: Collection[Column] = (),
) -> AnnotatedImages:
    """Reads a COCO file, or a folder in VOC's layout. Raises UserError naming the file and the fix.

    pictures    their folder; None: where the formats have them. They are needed only if the files lack their sizes
    image_set   of VOC: a list such as `test` or `2007_test`, or the path of one; None: `likely_set` where there is such
                a list, else all XML files
    columns     what is read of a COCO file beside boxes
    """
    if pictures is not None and not pictures.is_dir():
        raise UserError(f"--images: the folder {pictures} does not exist")
    if path.is_dir():
        return _read_voc(path, pictures, image_set, likely_set)
    if image_set is not None:
        raise UserError(f"--image-set: {path} is no VOC folder; a COCO file has the images that it lists")
    return _read_coco(path, pictures, columns)


def _read_coco(path: Path, pictures: Path | None, columns: Collection[Column]) -> AnnotatedImages:
    content = read_tables(path)
    classes, keypoints = coco_classes(content, path), COCOKeypoints()
    if "keypoints" in columns:
        keypoints = coco_keypoints(content["categories"], classes.names, [label >= 0 for label in classes.labels])
    ids = read_image_ids(content["images"], path)
    sizes = {number: size for number, row in enumerate(content["images"]) if (size := _size(row))}
    annotations = COCOAnnotations(classes, IdTable(ids), path, columns, keypoints.points, sizes)
    annotations.read(content["annotations"])
    names = [picture_name(row) for row in content["images"]]
    files = _coco_pictures(names, path, pictures)
    raw = []
    for number, (image_id, file) in enumerate(zip(ids, files, strict=True)):
        size, where = sizes.get(number), f"{path}: image {image_id!r}"
        raw.append(RawImage(image_id, file, where, size, annotations.by_image[number]))
    table = classes.table, classes.labels
    notes = _sentences({**classes.notes, **keypoints.notes, **annotations.notes})
    categories = replace(classes.categories, keypoints=keypoints.categories)
    return _annotated(path, raw, names, pictures, categories, table, notes)


def _size(row: Mapping[str, Any]) -> Size | None:
    height, width = coco_number(row.get("height")), coco_number(row.get("width"))
    return (round(height), round(width)) if height and width else None


def _coco_pictures(names: Sequence[str], path: Path, pictures: Path | None) -> list[str]:
    """The file of each picture, empty where it is not at hand."""
    below = ("", "images", path.stem.rpartition("_")[2])  # instances_val2017.json beside or below val2017
    folders = [pictures] if pictures else [base / name for base in (path.parent, path.parent.parent) for name in below]
    first = [name for name in names if name][:10]
    counts = [sum(find(name, [folder])[0] is not None for name in first) for folder in folders]
    folder = folders[counts.index(max(counts))]
    files = [find(name, [folder])[0] if name and any(counts) else None for name in names]
    return [str(file) if file else "" for file in files]


def _read_voc(path: Path, pictures: Path | None, image_set: str | None, likely_set: str | None) -> AnnotatedImages:
    devkit = _devkit(path, image_set)
    if image_set is None and likely_set and any((devkit / lists / f"{likely_set}.txt").is_file() for lists in LISTS):
        image_set = likely_set
    folder, ids = _images_of_set(devkit, image_set)
    picture_folder = VOCFolder(pictures) if pictures else folder
    raw, names, notes = [], [], Counter[str]()
    annotations = [_annotation(folder, image_id) for image_id in ids]
    categories = _voc_categories(annotations)
    labels = {name: label for label, name in enumerate(categories.names)}
    for image_id, annotation in zip(ids, annotations, strict=True):
        files = picture_folder.pictures_of(image_id)
        where = str(folder.xml_of(image_id) or folder.annotations / f"{image_id}.xml")
        objects = [_voc_object(item, labels) for item in annotation.objects]
        file = str(files[0]) if files else ""
        raw.append(RawImage(image_id, file, where, annotation.size, objects, annotation.problem))
        names.append(annotation.filename or f"{image_id}.jpg")
        notes.update(item.note for item in annotation.objects if item.note)
    measured = f"measured on the {plural(len(ids), 'image')} of the list {image_set}; another: --image-set"
    sentences = (*((measured,) if image_set else ()), *_sentences(notes))
    table = IdTable(categories.ids), range(len(categories))
    return _annotated(devkit, raw, names, pictures, categories, table, sentences)


def _devkit(path: Path, image_set: str | None) -> Path:
    """The folder of the annotations: `path`, or its only folder such as VOC2007, or the one of `image_set`."""
    devkits = sorted(folder for folder in path.glob("VOC*") if folder.is_dir())
    year = (image_set or "").partition("_")[0]
    chosen = [folder for folder in devkits if folder.name == f"VOC{year}"] or devkits
    if len(chosen) > 1:
        years = ", ".join(folder.name for folder in chosen)
        raise UserError(f"{path}: expected one VOC folder, found {years}; name one of them with --ground-truth")
    return chosen[0] if chosen else path


def _images_of_set(devkit: Path, image_set: str | None) -> ImageSet:
    folder = VOCFolder(devkit)
    if image_set is not None:
        path = next((file for file in (Path(image_set), devkit / image_set) if file.is_file()), None)
        if path is not None:
            return folder, read_list(path, folder)
        files = find_files(devkit, [image_set], "--image-set")
        return files[0].folder, [file.image_id for file in files]
    ids = [image_id for image_id in folder.ids() if folder.xml_of(image_id)]
    if not ids:
        raise UserError(
            f"{devkit}: expected a COCO file, or a folder with VOC's XML files in Annotations, found no XML file; "
            "for other formats name a configuration with --config, or convert them with `detkit convert`"
        )
    return folder, ids


def _annotation(folder: VOCFolder, image_id: str) -> Annotation:
    xml = folder.xml_of(image_id)
    if xml is None:
        problem = (
            f"this file does not exist, though {image_id} is in the list; add it, or take the image out of the list"
        )
        return Annotation(problem=None if folder.pictures_of(image_id) else problem)
    return read_annotation(xml)


def _voc_categories(annotations: Sequence[Annotation]) -> Categories:
    """VOC's 20 if there are no others, else the names that occur."""
    names = {item.name for annotation in annotations for item in annotation.objects if item.name}
    return Categories.of_names(VOC_CLASSES if names <= set(VOC_CLASSES) else sorted(names))


def _voc_object(item: VOCObject, labels: Mapping[str, int]) -> RawObject:
    return RawObject(item.where, labels.get(item.name, -1), item.box, item.problem, {"ignore": item.difficult})


def _annotated(
    path: Path,
    raw: Sequence[RawImage],
    names: Sequence[str],
    pictures: Path | None,
    categories: Categories,
    table: tuple[IdTable, Sequence[int]],
    notes: Sequence[str],
) -> AnnotatedImages:
    missing = [name for image, name in zip(raw, names, strict=True) if not image.path]
    if missing and pictures is not None:
        raise UserError(
            f"--images: {pictures} lacks {len(missing)} of the {len(raw)} pictures, the first is "
            f"{missing[0] or 'one without a file_name'}; name the folder that has them all"
        )
    images = _with_sizes(raw, str(path))
    faults = [fault for image in images for fault in _faults(image)]
    if faults:
        raise UserError(f"{faults[0]}; {plural(len(faults), 'fault')} like this; correct the annotations")
    truths = [GroundTruth(image.image_id, image.size or (0, 0), _objects(image, categories)) for image in images]
    if 0 < len(missing) < len(raw):
        notes = [
            *notes,
            f"no picture is shown, as {len(missing)} of {len(raw)} are not at hand: --images names a folder",
        ]
    paths = None if missing else [image.path for image in raw]
    return AnnotatedImages(str(path), categories, truths, names, paths, *table, tuple(notes))


def _with_sizes(raw: Sequence[RawImage], name: str) -> list[RawImage]:
    """The images, with the sizes of the pictures where the files have none."""
    unknown = [image for image in raw if image.size is None and image.problem is None]
    lacking = [image for image in unknown if not image.path]
    if lacking:
        raise UserError(
            f"{lacking[0].where}: has no size, as {len(lacking)} of {len(raw)} images; add their width and height, or "
            "name the folder of the pictures with --images"
        )
    sizes = dict(
        zip((image.path for image in unknown), picture_sizes([i.path for i in unknown], False, name), strict=True)
    )
    read = []
    for image in raw:
        size = sizes.get(image.path, image.size)
        read.append(replace(image, problem=size) if isinstance(size, str) else replace(image, size=size))
    return read


def _faults(image: RawImage) -> list[str]:
    """What cannot be measured: that which is not readable, and boxes that are not finite or end before they begin."""
    if image.problem:
        return [f"{image.where}: {image.problem}"]
    faults = []
    for item in image.objects:
        x1, y1, x2, y2 = item.box
        sound = all(map(math.isfinite, item.box)) and x1 <= x2 and y1 <= y2
        problem = item.problem or (None if sound else f"box x {x1:g} to {x2:g}, y {y1:g} to {y2:g} is not a box")
        if problem:
            faults.append(f"{image.where}: {item.where}: {problem}")
    return faults


def _objects(image: RawImage, categories: Categories) -> Objects[np.ndarray]:
    """The area is the annotated one, else that of the box."""
    items, points = image.objects, categories.keypoints
    boxes = np.array([item.box for item in items], np.float64).reshape(-1, 4)
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    areas = [item.columns.get("area", area) for item, area in zip(items, box_areas, strict=True)]
    masks, sizes = [item.columns.get("masks") for item in items], [image.size or (0, 0)] * len(items)
    none = np.zeros((len(points.names) if points else 0, 3))  # labelled
    keypoints = np.array([item.columns.get("keypoints", none) for item in items], np.float32)
    return Objects(
        boxes.astype(np.float32),
        np.array([item.label for item in items], np.int64),
        ignore=np.array([item.columns["ignore"] for item in items], np.bool_),
        area=np.array(areas, np.float32),
        masks=EncodedMasks.of(masks, sizes) if any(mask is not None for mask in masks) else None,
        keypoints=keypoints.reshape(len(items), *none.shape) if points else None,
    )


def _sentences(notes: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(plural(number, phrase) for phrase, number in notes.items() if number)

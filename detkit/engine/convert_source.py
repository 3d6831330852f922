"""A data set in any format that detkit reads, for `detkit convert`: all its splits, and what is not about objects."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from detkit.config import UserError
from detkit.data.build import build_dataset
from detkit.data.checks import LabelPolicy
from detkit.data.coco import COCOConfig
from detkit.data.coco_annotations import SHORT, UNNAMED
from detkit.data.coco_keypoints import DIFFERENT
from detkit.data.dataset import ImageDataset
from detkit.data.foreign import FORMATS, foreign_format, read_foreign
from detkit.data.foreign.collect import SPLIT_WORDS
from detkit.data.voc import VOCConfig
from detkit.data.voc_files import find_files
from detkit.data.without_boxes import beside_coco, beside_voc, beside_yolo
from detkit.data.writers.voc import read_labelmap
from detkit.data.yolo import YOLODataConfig
from detkit.engine.recognise import OWN_FORMATS, recognise, split_configs
from detkit.structures import Categories

OwnConfig = VOCConfig | COCOConfig | YOLODataConfig
T = TypeVar("T")

IN_NO_LIST = "file that no list names (picture or XML)"


@dataclass(frozen=True, slots=True)
class Source:
    """A data set that is to be converted.

    format      `voc`, `coco`, `yolo` or one of `FORMATS`
    splits      `train`, `val` and `test`, as far as they are there, each with classes of its own
    categories  the classes of all splits
    lost        counts of what was in the files and is neither an object nor a class
    """

    format: str
    splits: Mapping[str, ImageDataset]
    categories: Categories
    lost: Counter[str]


def read_source(path: Path, format_name: str | None, on_bad_label: LabelPolicy) -> Source:
    """Reads every split; pictures are not decoded.

    Raises UserError where the folder has no known format, DataError for what `on_bad_label` does not settle.
    """
    known = (*OWN_FORMATS, *FORMATS)
    if format_name is not None and format_name not in known:
        raise UserError(f"--from {format_name}: expected one of {', '.join(known)}")
    if not path.exists():
        raise UserError(f"{path}: no such folder or file")
    foreign = format_name if format_name in FORMATS else None
    if foreign is None and format_name is None:
        foreign = foreign_format(path)
    if foreign is not None:
        return _read_foreign(path, foreign, on_bad_label)
    found = recognise(path, format_name)
    configs = split_configs(found)
    if not configs:
        raise UserError(f"{found.data.root}: describes no train, val or test split")
    settings = {"on_bad_label": on_bad_label, "check_images": False}
    source = _read_own({split: config.model_copy(update=settings) for split, config in configs.items()})
    source.lost[f"annotation file ({', '.join(found.left_out)})"] += len(found.left_out)
    return source


def _read_foreign(path: Path, name: str, on_bad_label: LabelPolicy) -> Source:
    data, names = read_foreign(path, name)
    if not names:
        raise UserError(f"{path}: no object of any class in the format {name}")
    categories = Categories.of_names(names)
    splits = {
        split: ImageDataset(
            images,
            name=f"{name} {split} ({path})",
            categories=categories,
            on_bad_label=on_bad_label,
            decode=False,
            notes=data.notes if number == 0 else None,
        )
        for number, (split, images) in enumerate(_in_order(data.images).items())
    }
    return Source(name, splits, categories, +data.lost)


def _read_own(configs: Mapping[str, OwnConfig]) -> Source:
    configs = _with_all_classes(_in_order(configs))
    splits = {split: build_dataset(config, "train") for split, config in configs.items()}
    categories = _join([dataset.categories for dataset in splits.values()])
    splits = {split: _relabel(dataset, categories) for split, dataset in splits.items()}
    return Source(next(iter(configs.values())).name, splits, categories, _lost(configs, splits))


def _in_order(splits: Mapping[str, T]) -> dict[str, T]:
    return {split: splits[split] for split in SPLIT_WORDS if split in splits}


def _with_all_classes(configs: Mapping[str, OwnConfig]) -> Mapping[str, OwnConfig]:
    """VOC lists no classes: those of all splits, in the order of a label map where there is one, else sorted."""
    vocs = [config for config in configs.values() if isinstance(config, VOCConfig)]
    if not vocs:
        return configs
    root, lists = Path(vocs[0].root), tuple(dict.fromkeys(name for config in vocs for name in config.train))
    every = vocs[0].model_copy(update={"train": lists, "classes": "auto"})
    folders = [root, *(root / f"VOC{name.partition('_')[0]}" for name in lists)]
    listed: Sequence[str] = next(filter(None, map(read_labelmap, folders)), [])
    names = tuple(dict.fromkeys((*listed, *build_dataset(every, "train", columns=()).categories.names)))
    return {split: config.model_copy(update={"classes": names}) for split, config in configs.items()}


def _join(parts: Sequence[Categories]) -> Categories:
    """The classes of all splits by their names, with the ids of the first split that has them if these differ.

    Raises UserError if two splits have different keypoints.
    """
    ids: dict[str, int | str] = {}
    for part in parts:
        for name, category_id in zip(part.names, part.ids, strict=True):
            ids.setdefault(name, category_id)
    different = {part.keypoints.names: part.keypoints for part in parts if part.keypoints is not None}
    if len(different) > 1:
        listed = " and ".join(", ".join(names) for names in list(different)[:2])
        raise UserError(f"the splits differ in their keypoints, {listed}; all need the same in the same order")
    joined = Categories(tuple(ids), tuple(ids.values()))
    if len(set(ids.values())) < len(ids):
        joined = Categories.of_names(list(ids))
    return replace(joined, keypoints=next(iter(different.values()), None))


def _relabel(dataset: ImageDataset, categories: Categories) -> ImageDataset:
    result, labels = copy.copy(dataset), np.array([categories.names.index(name) for name in dataset.categories.names])
    result.objects = replace(dataset.objects, labels=labels[dataset.objects.labels])
    result.categories = categories
    return result


def _lost(configs: Mapping[str, OwnConfig], splits: Mapping[str, ImageDataset]) -> Counter[str]:
    lost: Counter[str] = Counter()
    lists: list[str] = []
    root = Path(next(iter(configs.values())).root)
    for split, config in configs.items():
        match config:
            case COCOConfig():
                lost += beside_coco(root / config.train_annotations)
                notes = splits[split].notes
                lost.update({note: notes[note] for note in notes if note.startswith((DIFFERENT, UNNAMED, SHORT))})
            case YOLODataConfig():
                lost += beside_yolo({splits[split].path(index) for index in range(len(splits[split]))})
            case VOCConfig():
                lists += config.train
    if lists:
        files = find_files(root, tuple(dict.fromkeys(lists)), "lists")
        lost += beside_voc({file.xml for file in files if file.xml})
        folders = {file.folder.pictures: file.folder for file in files}
        there = {(pictures, image_id) for pictures, folder in folders.items() for image_id in folder.ids()}
        lost[IN_NO_LIST] += len(there - {(file.folder.pictures, file.image_id) for file in files})
    return +lost

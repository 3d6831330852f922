"""Detections that any program wrote, on ground truth that detkit reads, ready to be measured.

Legend: N detections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Literal

import numpy as np

from detkit.config import Config, UserError, override, parse_config
from detkit.data.build import build_dataset
from detkit.data.coco_ids import Id, IdTable, as_number
from detkit.data.dataset import plural
from detkit.engine.class_match import listed, map_classes
from detkit.engine.config_files import load_named
from detkit.engine.evaluate import detection_store
from detkit.engine.foreign_ground_truth import AnnotatedImages, read_ground_truth
from detkit.engine.overrides import check_settings
from detkit.engine.results_columns import with_sizes
from detkit.engine.results_files import ResultRows, read_results
from detkit.evaluation.build import build_evaluators, choose_protocols
from detkit.evaluation.evaluator import Evaluation, summarise
from detkit.evaluation.protocols import EvalConfig, Protocol
from detkit.evaluation.store import DetectionStore
from detkit.structures import COLUMNS, Column, Detections, EncodedMasks, Objects

MEASURING = ("eval.coco_backend", "eval.max_detections")  # what is read where no detector runs
ClassIds = Literal["data", "from-0", "from-1"]


class _Settings(Config):
    """What `--set` changes where there is no configuration."""

    eval: EvalConfig = EvalConfig()


@dataclass(frozen=True, eq=False)
class Results:
    """The detections of one detector and what they are measured on.

    name      the files of the detections
    data      what they are measured on
    notes     what was unusual, in sentences for the user
    settings  how they are measured
    columns   what the detections have beside boxes; everything, if there are none
    unusual   the notes on the data alone
    """

    store: DetectionStore
    name: str
    data: str
    notes: tuple[str, ...]
    settings: EvalConfig
    columns: tuple[Column, ...] = ()
    unusual: tuple[str, ...] = ()


def load_results(
    detections: Sequence[Path],
    *,
    ground_truth: Path | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    images: Path | None = None,
    image_set: str | None = None,
    class_ids: ClassIds = "data",
    class_map: Mapping[str, str] | None = None,
) -> Results:
    """Reads COCO results, or VOC's files of one detector, for the images of `ground_truth` or of `config`.

    detections    see `read_results`
    ground_truth  a COCO file or a VOC folder, which need not have their pictures
    config        instead: the YAML file or the name of a configuration, for its validation data; `overrides` change it
    images        the folder of the pictures of `ground_truth`, where they are elsewhere
    image_set     of a VOC folder: the list of the images to measure on
    class_ids     `data`: the results use the data's ids, or names; `from-0`, `from-1`: they number the data's classes
    class_map     the data's names of classes by those of the results, where name and synonym do not tell

    Raises UserError, for results of images that the data lack too.
    """
    rows = read_results(detections)
    columns = rows.columns.names if rows.images else COLUMNS  # no detections are no masks and no keypoints too
    if ground_truth is not None and config is None:
        parsed = parse_config(override({}, overrides, _Settings), _Settings, where="--set")
        check_settings(parsed, overrides, MEASURING)
        settings = parsed.eval
        data = read_ground_truth(ground_truth, images, image_set, rows.image_set, columns)
    elif config is not None and ground_truth is None and images is None and image_set is None:
        settings, data = _read_configured(config, overrides, columns)
    else:
        raise UserError(
            "--detections: expected one thing to measure on: --ground-truth, a COCO file or a VOC folder (and for them "
            "--images and --image-set), or else --config, a configuration with validation data"
        )
    labels, class_notes = _labels(rows, data, class_ids, class_map or {})
    indices, image_notes = _image_indices(rows, data)
    store = DetectionStore(data.categories, data.ground_truth, data.paths)
    _fill(store, rows, indices, labels)
    notes = [*data.notes, *rows.notes, *image_notes, *class_notes, *_doubts(rows, store, indices)]
    return Results(store, rows.name, data.name, tuple(notes), settings, columns, tuple(data.notes))


def evaluate_results(results: Results, protocols: Sequence[Protocol] | None = None) -> Evaluation:
    """Measures by each of the protocols; None: by all that measure what the results and the data have."""
    settings, store = results.settings, results.store
    protocols = choose_protocols(protocols, store, results.columns, results.name, results.unusual)
    evaluators = build_evaluators(
        protocols, store, coco_backend=settings.coco_backend, max_detections=settings.max_detections
    )
    evaluation = summarise(store, evaluators)
    return replace(evaluation, notes=results.notes)


def _read_configured(
    config: Path, overrides: Sequence[str], columns: Sequence[Column]
) -> tuple[EvalConfig, AnnotatedImages]:
    settings = load_named(config, overrides)
    check_settings(settings, overrides, ("data", *MEASURING))
    dataset = build_dataset(settings.data, "val", columns=columns)
    store = detection_store(dataset)
    categories, paths = store.categories, store.paths or ()
    table = IdTable(categories.ids)
    data = AnnotatedImages(dataset.name, categories, store.ground_truth, paths, paths, table, range(len(categories)))
    return settings.eval, data


def _labels(
    rows: ResultRows, data: AnnotatedImages, class_ids: ClassIds, class_map: Mapping[str, str]
) -> tuple[np.ndarray, list[str]]:
    """int64 `[N]`: the label of each detection, -1 for a class that the data lack; and what to tell the user."""
    counts = Counter(rows.classes)
    names = data.categories.names
    texts = [ref for ref in counts if isinstance(ref, str)]
    by_name: dict[Id, int] = {
        ref: label for ref, label in zip(texts, map_classes(texts, names, class_map), strict=True) if label >= 0
    }
    if class_ids == "data":
        _check_count(rows, data, [ref for ref in counts if ref not in by_name])
        label_of = {ref: by_name.get(ref, _label_of_id(ref, data)) for ref in counts}
    else:
        label_of = {ref: _numbered(ref, class_ids == "from-1", len(names)) for ref in counts}
    unknown = [str(ref) for ref, label in label_of.items() if label < 0]
    left_out = sum(number for ref, number in counts.items() if label_of[ref] < 0)
    if left_out and left_out == len(rows.classes):
        known = listed([f"{class_id} {name}" for class_id, name in zip(data.categories.ids, names, strict=True)])
        raise UserError(
            f"{rows.name}: none of its classes ({listed(unknown)}) is in {data.name}, whose classes are {known}; say "
            "which is which: in a file for --class-map if they are names, by --class-ids from-0 or from-1 if numbers"
        )
    notes = (
        [f"{plural(left_out, 'detection')} of classes that the data lack left out: {listed(unknown)}"]
        if unknown
        else []
    )
    renamed = [f"{ref} is {names[label]}" for ref, label in by_name.items() if ref != names[label]]
    if renamed and class_ids == "data":
        notes.append(f"classes under another name in the data: {listed(renamed)}")
    labels = np.array([label_of[ref] for ref in rows.classes], np.int64)
    return labels, notes + _without_detections(data, labels)


def _label_of_id(ref: Id, data: AnnotatedImages) -> int:
    row = data.class_ids.find(ref)[0]
    return -1 if row is None else data.labels[row]


def _numbered(ref: Id, first: int, num_classes: int) -> int:
    number = as_number(ref)
    return number - first if isinstance(number, int) and 0 <= number - first < num_classes else -1


def _check_count(rows: ResultRows, data: AnnotatedImages, refs: Sequence[Id]) -> None:
    """Raises UserError if the results seem to number the classes, or to count the data's ids from another start."""
    used = {number for number in map(as_number, refs) if isinstance(number, int)}
    known = {number for number in map(as_number, data.categories.ids) if isinstance(number, int)}
    num_classes, unknown = len(data.categories), used - known
    from_0 = 0 in unknown and (max(used) < num_classes or len(unknown) > 1)  # 0 alone is a background beside the ids
    from_1 = not from_0 and bool(unknown) and min(used) >= 1 and max(used) <= num_classes
    if from_0 or from_1:
        first = 0 if from_0 else 1
        raise UserError(
            f"{rows.name}: its class ids are {min(used)} to {max(used)}, those of {data.name} {min(known)} to "
            f"{max(known)} without {listed([str(number) for number in sorted(unknown)])}: if they number its "
            f"{num_classes} classes from {first}, say --class-ids from-{first}; if they are the data's ids "
            "counted from elsewhere, shift category_id in the file; else leave the other classes out of it"
        )


def _without_detections(data: AnnotatedImages, labels: np.ndarray) -> list[str]:
    """A note on the classes that have objects and no detection."""
    annotated = np.concatenate([image.objects.labels for image in data.ground_truth])
    names = [data.categories.names[label] for label in np.setdiff1d(annotated, labels)]
    return [f"no detection of {plural(len(names), 'class')} that the data have: {listed(names)}"] if names else []


def _image_indices(rows: ResultRows, data: AnnotatedImages) -> tuple[np.ndarray, list[str]]:
    """int64 `[N]`: the image of each detection, and what to tell the user. Raises UserError for images not there."""
    table = IdTable([image.image_id for image in data.ground_truth])
    by_name = _by_name(data.file_names)
    index_of: dict[Id, int] = {}
    unknown: list[Id] = []
    respelled: list[str] = []
    for ref in dict.fromkeys(rows.images):
        index, as_written = _find_image(ref, table, by_name)
        if index is None:
            unknown.append(ref)
            continue
        index_of[ref] = index
        if not as_written:
            respelled.append(f"{ref!r} is {table.ids[index]!r}")
    if unknown:
        raise UserError(
            f"{rows.name}: {len(unknown)} of the {len(unknown) + len(index_of)} images with detections are not in "
            f"{data.name}, the first is {unknown[0]!r}, while ids there are such as {table.ids[0]!r}; name the ground "
            "truth that has them, or leave their detections out of the file"
        )
    notes = []
    if respelled:
        notes.append(f"{plural(len(respelled), 'image')} matched by another spelling of the id: {respelled[0]}")
    without = len(table.ids) - len(set(index_of.values()))
    if without:
        notes.append(f"{without} of {plural(len(table.ids), 'image')} have no detection in the results")
    return np.array([index_of[ref] for ref in rows.images], np.int64), notes


def _by_name(file_names: Iterable[str]) -> dict[str, int]:
    """The index of each picture by its name, also without folders and suffix, where only one has it."""
    indices: dict[str, set[int]] = {}
    for index, name in enumerate(file_names):
        for spelling in _spellings(name):
            indices.setdefault(spelling, set()).add(index)
    return {name: next(iter(own)) for name, own in indices.items() if len(own) == 1}


def _spellings(name: str) -> list[str]:
    path = PurePath(name.replace("\\", "/"))
    return list(dict.fromkeys(filter(None, (str(path), path.name, path.stem))))


def _find_image(ref: Id, table: IdTable, by_name: Mapping[str, int]) -> tuple[int | None, bool]:
    """(index, whether the results write its id as the data do), (None, False) if the data do not have it.

    A name goes before a number: `"000042"` is 000042.jpg where there is such a picture, else the image 42.
    """
    index, as_written = table.find(ref)
    if index is not None and as_written:
        return index, True
    for text in _spellings(str(ref)):
        index = by_name.get(text, table.find(text)[0])
        if index is not None:
            return index, False
    return None, False


def _fill(store: DetectionStore, rows: ResultRows, indices: np.ndarray, labels: np.ndarray) -> None:
    """Enters the detections, those of label -1 apart, image by image, best first; equal scores as in the file."""
    known = np.flatnonzero(labels >= 0)
    order = known[np.lexsort((-rows.scores[known], indices[known]))]
    masks, keypoints = _masks(rows, store, indices), _keypoints(rows, store)
    starts = np.searchsorted(indices[order], np.arange(len(store.ground_truth) + 1))
    boxes, scores = rows.boxes.astype(np.float32), rows.scores.astype(np.float32)
    for number, image in enumerate(store.ground_truth):
        own = order[starts[number] : starts[number + 1]]
        objects = Objects(
            boxes[own],
            labels[own],
            scores=scores[own],
            masks=None if masks is None else masks[own],
            keypoints=None if keypoints is None else keypoints[own],
        )
        store.update(image.image_id, Detections(objects.to_tensors(), store.categories))


def _masks(rows: ResultRows, store: DetectionStore, indices: np.ndarray) -> EncodedMasks | None:
    if rows.columns.masks is None:
        return None
    sizes = np.array([image.size for image in store.ground_truth], np.int64)[indices]
    return with_sizes(rows.columns.masks, sizes, rows.images, lambda row: f"{rows.name}: entry {row}")


def _keypoints(rows: ResultRows, store: DetectionStore) -> np.ndarray | None:
    """Raises UserError if the data have another number of them."""
    keypoints, known = rows.columns.keypoints, store.categories.keypoints
    if keypoints is not None and known and keypoints.shape[1] != len(known.names):
        raise UserError(
            f"{rows.name}: its detections have {keypoints.shape[1]} keypoints, the objects of the data "
            f"{len(known.names)} ({listed(known.names)}); write as many, in this order"
        )
    return keypoints


def _doubts(rows: ResultRows, store: DetectionStore, indices: np.ndarray) -> list[str]:
    """Notes on boxes that are probably in another form; they are measured as they are."""
    if not len(indices):
        return []
    sizes = np.array([image.size for image in store.ground_truth], np.float64)[indices]
    corner, sides = rows.boxes[:, :2], rows.boxes[:, 2:] - rows.boxes[:, :2]
    if rows.boxes.max() <= 1:
        return [
            "every box lies in the first pixel of its image: they are expected in pixels, not in shares of the image"
        ]
    outside = (rows.boxes[:, 2:] > sizes[:, ::-1] + 1).any(axis=1)
    corners = (sides >= corner) & (sides <= sizes[:, ::-1] + 1)
    if rows.image_set is None and outside.mean() > 0.5 and corners.all():
        return ["most boxes leave their image, and as x1 y1 x2 y2 none would: COCO results have x, y, width, height"]
    return []

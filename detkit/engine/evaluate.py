"""Runs a detector over a data set and measures it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from detkit.config import UserError, override, parse_config
from detkit.data.build import build_dataset
from detkit.data.dataset import ImageDataset
from detkit.detectors.detector import AnyDetector
from detkit.engine import distributed
from detkit.engine.amp import AMP, autocast
from detkit.engine.checks import explaining_memory
from detkit.engine.class_match import describe_match, listed, map_classes, shared_classes
from detkit.engine.config_files import load_named
from detkit.engine.loaders import evaluation_loader
from detkit.engine.overrides import check_settings, describe_overrides, split_overrides
from detkit.engine.proposal_search import proposals_for
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.engine.speed import for_prediction
from detkit.evaluation.build import build_evaluators, choose_protocols
from detkit.evaluation.evaluator import Evaluation, Evaluator, summarise
from detkit.evaluation.protocols import COCO_PROTOCOLS, LIMITED_PROTOCOLS, PROTOCOLS, Protocol
from detkit.evaluation.store import DetectionStore
from detkit.structures import Batch, Categories, Detections


@torch.inference_mode()
def evaluate(
    detector: AnyDetector,
    loader: Iterable[Batch],
    store: DetectionStore,
    evaluators: Mapping[Protocol, Evaluator],
    *,
    device: torch.device,
    amp: AMP = "off",
    progress: bool = True,
    dataset_label: torch.Tensor | None = None,
) -> Evaluation:
    """Detects on every image of `loader` and measures with `evaluators`, which read the detections from `store`.

    dataset_label  int64 `[K]`: the store's label of each detector class, -1 for none; None: by name, see `label_map`

    Afterwards `store` holds the detections of the whole data set, those of other processes too.
    """
    detector.eval()
    store.reset()
    if dataset_label is None:
        dataset_label = label_map(detector.categories, store.categories)
    for batch in tqdm(loader, desc="evaluating", leave=False, disable=not progress, dynamic_ncols=True):
        with explaining_memory(batch, "eval.batch_size"), autocast(device, amp):
            batch = batch.to(device)
            outputs = detector(batch)
        for info, detections in zip(batch.infos, detector.postprocess(outputs, batch.infos), strict=True):
            store.update(info.image_id, relabel(detections, dataset_label, store.categories))
    if distributed.world_size() > 1:
        store.merge(distributed.gather(store.state()))
    return summarise(store, evaluators)


def label_map(detector: Categories, dataset: Categories, class_map: Mapping[str, str] | None = None) -> torch.Tensor:
    """int64 `[K]`: the data set's label of each detector class; -1 where the data set does not have it.

    Classes are the same by `class_map` (the data set's name by the detector's), by name, or by synonym; see
    `map_classes`. Raises UserError if the detector lacks a class of the data set.
    """
    labels = map_classes(detector.names, dataset.names, class_map or {})
    missing = [name for label, name in enumerate(dataset.names) if label not in labels]
    if missing:
        raise UserError(
            f"this detector does not know {len(missing)} of the data set's {len(dataset)} classes ({listed(missing)}); "
            f"it was trained on {listed(detector.names)}; if it calls them otherwise, say so in a file, "
            "--class-map FILE with lines `its name: the data's name`, or measure on the classes that both have: "
            "--classes shared"
        )
    return torch.tensor(labels)


def relabel(detections: Detections, dataset_label: torch.Tensor, categories: Categories) -> Detections:
    """The same detections in the labels of a data set, without those of classes that it does not have."""
    labels = dataset_label[detections.labels]
    objects = replace(detections.objects, labels=labels).take(labels >= 0)
    return Detections(objects, categories)


def detection_store(dataset: ImageDataset, labels: Sequence[int] | None = None) -> DetectionStore:
    """For the detections on a data set, or on those of its classes that have one of `labels`, in this order."""
    truths = [dataset.ground_truth(index) for index in range(len(dataset))]
    categories, paths = dataset.categories, [dataset.path(index) for index in range(len(dataset))]
    if labels is None:
        return DetectionStore(categories, truths, paths)
    names, ids = tuple(categories.names[label] for label in labels), tuple(categories.ids[label] for label in labels)
    new_label = np.full(len(categories), -1)
    new_label[list(labels)] = np.arange(len(labels))
    restricted = []
    for truth in truths:
        objects = replace(truth.objects, labels=new_label[truth.objects.labels])
        restricted.append(replace(truth, objects=objects.take(objects.labels >= 0)))
    return DetectionStore(replace(categories, names=names, ids=ids), restricted, paths)


def evaluate_source(
    source: str | Path,
    protocols: Sequence[Protocol] | None = None,
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    class_map: Mapping[str, str] | None = None,
    classes: Literal["all", "shared"] = "all",
) -> tuple[Evaluation, DetectionStore]:
    """Measures a run, a checkpoint or a public detector (see `load_detector`) on validation data.

    The data are those it was trained with, or those of the YAML file `config`. `overrides` change them, how they are
    measured, and of `model` what needs no new weights (see `load_detector`); others are a UserError. The store holds
    the detections.

    protocols  None: all that measure what the detector gives and the data have: boxes, masks, keypoints
    class_map  the data's names of classes by the detector's, where name and synonym do not tell
    classes    `shared`: measure on the classes that the detector and the data both have; `all`: on the data's, and
               UserError if the detector lacks one
    """
    of_model, others = split_overrides(overrides)
    detector, trained = load_detector(source, of_model)
    settings = evaluation_settings(source, trained, config, others)
    check_effect(detector, others, protocols or PROTOCOLS)
    evaluation, store = evaluate_detector(detector, settings, protocols, class_map=class_map, classes=classes)
    return replace(evaluation, notes=(*detector.notes, *describe_overrides(overrides), *evaluation.notes)), store


def evaluate_detector(
    detector: AnyDetector,
    settings: RunConfig,
    protocols: Sequence[Protocol] | None = None,
    *,
    class_map: Mapping[str, str] | None = None,
    classes: Literal["all", "shared"] = "all",
) -> tuple[Evaluation, DetectionStore]:
    """Measures a detector on the validation data of `settings`; see `evaluate_source`."""
    with distributed.process_group(settings.device) as device:
        with distributed.first_process_first():
            dataset = build_dataset(settings.data, "val", columns=detector.columns)
        names, data_names = detector.categories.names, dataset.categories.names
        shared = shared_classes(names, data_names, class_map or {}) if classes == "shared" else None
        store = detection_store(dataset, shared)
        unmeasured = _unmeasured(detector, store, dataset.unusual) if protocols is None else []
        protocols = choose_protocols(protocols, store, detector.columns, "this detector", dataset.unusual)
        dataset_label = label_map(detector.categories, store.categories, class_map)
        notes = describe_match(names, data_names, store.categories.names, dataset_label.tolist()) + unmeasured
        if "coco_keypoints" in protocols:
            notes += match_keypoints(detector.categories, store.categories)
        detector = for_prediction(detector.to(device))
        workers, root = settings.loader.workers, Path(settings.data.root)
        loader = evaluation_loader(
            dataset,
            detector,
            batch_size=settings.eval.batch_size,
            workers=workers,
            proposals=proposals_for(detector, dataset, root, workers=workers, chosen=settings.loader.proposals),
        )
        evaluators = build_evaluators(
            protocols,
            store,
            coco_backend=settings.eval.coco_backend,
            max_detections=settings.eval.max_detections,
            link=settings.eval.link,
        )
        amp = settings.eval.amp
        evaluation = evaluate(detector, loader, store, evaluators, device=device, amp=amp, dataset_label=dataset_label)
        return replace(evaluation, notes=tuple(notes)), store


def _unmeasured(detector: AnyDetector, store: DetectionStore, unusual: Sequence[str]) -> list[str]:
    """Notes on what the detector gives beside boxes, and no object of the data has."""
    why = f" ({'; '.join(unusual)})" if unusual else ""
    columns = [column for column in detector.columns if column not in store.columns and store.num_objects]
    return [f"{column} are not measured, as no object of the data has any{why}" for column in columns]


def match_keypoints(detector: Categories, dataset: Categories) -> list[str]:
    """Notes on keypoints that have other names in the data: they are compared in their order.

    Raises UserError if they are not as many.
    """
    own, others = (categories.keypoints.names if categories.keypoints else () for categories in (detector, dataset))
    if len(own) != len(others):
        raise UserError(
            f"protocol coco_keypoints: this detector gives {len(own)} keypoints ({listed(own)}), the data have "
            f"{len(others)} ({listed(others)}); measure on data with the same, or its boxes, by voc07, voc10 or coco"
        )
    renamed = [f"{name} is {other}" for name, other in zip(own, others, strict=True) if name != other]
    return [f"keypoints under another name in the data, compared in their order: {listed(renamed)}"] if renamed else []


def evaluation_settings(
    source: str | Path,
    trained: RunConfig | None,
    config: Path | None,
    overrides: Sequence[str],
    sections: Sequence[str] = ("data", "loader", "eval", "device"),
) -> RunConfig:
    """Those of the file `config`, else those that the detector was trained with.

    sections  that are read; `overrides` of others, and of what matters only in training, are a UserError
    """
    if config:
        settings = load_named(config, overrides)
    elif trained:
        tree = override(trained.model_dump(mode="json"), overrides, RunConfig)
        settings = parse_config(tree, RunConfig, where=" ".join(f"--set {item}" for item in overrides))
    else:
        raise UserError(f"{source}: public weights bring no data; name a configuration that does with --config")
    check_settings(settings, overrides, sections)
    return settings


def check_effect(detector: AnyDetector, overrides: Sequence[str], protocols: Sequence[Protocol]) -> None:
    """Raises UserError for one that has no effect on this detector, or by these protocols."""
    given = {item.partition("=")[0].strip(): item for item in overrides}
    reasons: dict[str, str] = {}
    if not set(protocols) & set(LIMITED_PROTOCOLS):
        reasons["eval.max_detections"] = "without --protocol coco"
    if "tubes" not in protocols:
        reasons |= {path: "without --protocol tubes" for path in given if path.startswith("eval.link")}
    if not set(protocols) & set(COCO_PROTOCOLS):
        reasons["eval.coco_backend"] = "without --protocol coco"
    if detector.proposals is None:
        reasons["loader.proposals"] = "as this detector is given no proposals"
    if not any(True for _ in detector.parameters()):  # an exported file
        reasons["eval.amp"] = "as this file has its precision built in"
        reasons["device"] = "as this file runs where its runtime runs"
    for path, reason in reasons.items():
        if path in given:
            raise UserError(f"--set {given[path]}: has no effect {reason}")

"""Runs a detector over a data set and measures it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from detkit.config import UserError, load_config, override, parse_config
from detkit.data.build import build_dataset
from detkit.data.dataset import ImageDataset
from detkit.detectors.detector import AnyDetector
from detkit.engine import distributed
from detkit.engine.amp import AMP, autocast
from detkit.engine.loaders import evaluation_loader
from detkit.engine.proposal_search import proposals_for
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.engine.speed import accelerate
from detkit.evaluation.build import build_evaluators
from detkit.evaluation.evaluator import Evaluation, Evaluator, summarise
from detkit.evaluation.protocols import Protocol
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
) -> Evaluation:
    """Detects on every image of `loader` and measures with `evaluators`, which read the detections from `store`.

    Afterwards `store` holds the detections of the whole data set, those of other processes too.
    """
    detector.eval()
    store.reset()
    dataset_label = label_map(detector.categories, store.categories)
    for batch in tqdm(loader, desc="evaluating", leave=False, disable=not progress, dynamic_ncols=True):
        batch = batch.to(device)
        with autocast(device, amp):
            outputs = detector(batch)
        for info, detections in zip(batch.infos, detector.postprocess(outputs, batch.infos), strict=True):
            store.update(info.image_id, relabel(detections, dataset_label, store.categories))
    if distributed.world_size() > 1:
        store.merge(distributed.gather(store.state()))
    return summarise(store, evaluators)


def label_map(detector: Categories, dataset: Categories) -> torch.Tensor:
    """int64 `[K]`: the data set's label of each detector class, by name; -1 where the data set does not have it.

    Raises UserError if the detector lacks a class of the data set.
    """
    missing = [name for name in dataset.names if name not in detector.names]
    if missing:
        raise UserError(
            f"this detector does not know {len(missing)} of the data set's {len(dataset)} classes "
            f"({', '.join(missing[:5])}); it was trained on {', '.join(detector.names[:8])}"
            f"{', ...' if len(detector) > 8 else ''}; evaluate it on data with its own classes"
        )
    return torch.tensor([dataset.names.index(name) if name in dataset.names else -1 for name in detector.names])


def relabel(detections: Detections, dataset_label: torch.Tensor, categories: Categories) -> Detections:
    """The same detections in the labels of a data set, without those of classes that it does not have."""
    if detections.categories == categories:
        return detections
    labels = dataset_label[detections.labels]
    objects = replace(detections.objects, labels=labels).take(labels >= 0)
    return Detections(objects, categories)


def detection_store(dataset: ImageDataset) -> DetectionStore:
    return DetectionStore(dataset.categories, [dataset.ground_truth(index) for index in range(len(dataset))])


def evaluate_source(
    source: str | Path,
    protocols: Sequence[Protocol],
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Evaluation, DetectionStore]:
    """Measures a run, a checkpoint or a public detector (see `load_detector`) on validation data.

    The data are those it was trained with, or those of the YAML file `config`; `overrides` change them. The store
    holds the detections.
    """
    detector, trained = load_detector(source)
    if config:
        settings = load_config(config, RunConfig, overrides)
    elif trained:
        settings = parse_config(override(trained.model_dump(mode="json"), overrides), RunConfig, where="--set")
    else:
        raise UserError(f"{source}: public weights bring no data; name a configuration that does with --config")
    with distributed.process_group(settings.device) as device:
        with distributed.first_process_first():
            dataset = build_dataset(settings.data, "val")
        detector.to(device)
        accelerate(detector, constant=True)
        workers, root = settings.loader.workers, Path(settings.data.root)
        loader = evaluation_loader(
            dataset,
            detector,
            batch_size=settings.eval.batch_size,
            workers=workers,
            proposals=proposals_for(detector, dataset, root, workers=workers),
        )
        store = detection_store(dataset)
        evaluators = build_evaluators(protocols, store, coco_backend=settings.eval.coco_backend)
        evaluation = evaluate(detector, loader, store, evaluators, device=device, amp=settings.eval.amp)
        return evaluation, store

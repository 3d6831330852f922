"""Runs a detector over a data set and measures it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from detkit.config import UserError, load_config, override, parse_config
from detkit.data.build import build_dataset, build_loader
from detkit.data.dataset import ImageDataset
from detkit.data.proposals import ProposalFolder
from detkit.detectors.detector import Detector
from detkit.engine import distributed
from detkit.engine.amp import AMP, autocast
from detkit.engine.proposals import proposals_for
from detkit.engine.run import RunConfig, load_detector
from detkit.evaluation.coco import CocoBackend
from detkit.evaluation.evaluator import Arrays, Evaluation, Evaluator, Protocol
from detkit.structures import Batch, Detections, ImageId


@torch.inference_mode()
def evaluate(
    detector: Detector,
    loader: Iterable[Batch],
    evaluator: Evaluator,
    protocols: Sequence[Protocol],
    *,
    device: torch.device,
    amp: AMP = "off",
    progress: bool = True,
) -> Evaluation:
    """Detects on every image of `loader`, joins the parts of all processes and computes `protocols`.

    Afterwards `evaluator` holds the detections of the whole data set.
    """
    detector.eval()
    evaluator.reset()
    to_dataset = class_map(detector.class_names, evaluator.class_names)
    for batch in tqdm(loader, desc="evaluating", leave=False, disable=not progress, dynamic_ncols=True):
        batch = batch.to(device)
        with autocast(device, amp):
            outputs = detector(batch)
        for info, detections in zip(batch.infos, detector.postprocess(outputs, batch.infos), strict=True):
            evaluator.update(info.image_id, _relabel(detections.to("cpu"), to_dataset, evaluator.class_names))
    joined: dict[ImageId, Arrays] = {}
    for part in distributed.gather(evaluator.state()):  # an image that two processes saw counts once
        joined |= part
    evaluator.merge([joined])
    return evaluator.compute(protocols)


def class_map(detector_names: Sequence[str], dataset_names: Sequence[str]) -> torch.Tensor:
    """int64 `[K]`: the data set's label of each detector class, -1 where the data set does not have it.

    Raises UserError if the detector lacks a class of the data set.
    """
    missing = [name for name in dataset_names if name not in detector_names]
    if missing:
        raise UserError(
            f"this detector does not know {len(missing)} of the data set's {len(dataset_names)} classes "
            f"({', '.join(missing[:5])}); it was trained on {', '.join(detector_names[:8])}"
            f"{', ...' if len(detector_names) > 8 else ''}; evaluate it on data with its own classes"
        )
    return torch.tensor([dataset_names.index(name) if name in dataset_names else -1 for name in detector_names])


def _relabel(detections: Detections, to_dataset: torch.Tensor, class_names: tuple[str, ...]) -> Detections:
    labels = to_dataset[detections.labels]
    keep = labels >= 0
    return Detections(detections.boxes[keep], detections.scores[keep], labels[keep], class_names)


def build_evaluator(dataset: ImageDataset, coco_backend: CocoBackend = "pycocotools") -> Evaluator:
    ground_truth = [dataset.ground_truth(index) for index in range(len(dataset))]
    return Evaluator(dataset.class_names, dataset.category_ids, ground_truth, coco_backend=coco_backend)


def evaluation_loader(
    dataset: ImageDataset,
    detector: Detector,
    *,
    batch_size: int,
    workers: int,
    proposals: ProposalFolder | None = None,
    with_targets: bool = False,
    divided: bool = True,
) -> DataLoader[Batch]:
    """Every image once, in the order of the data set, resized as the detector's input spec says.

    divided  among the processes; else each sees all
    """
    return build_loader(
        dataset,
        place=detector.input.place,
        stride=detector.input.stride,
        batch_size=batch_size,
        augment=None,
        seed=0,
        workers=workers,
        shuffle=False,
        aspect_grouping=False,
        rank=distributed.rank() if divided else 0,
        world_size=distributed.world_size() if divided else 1,
        with_targets=with_targets,
        proposals=proposals,
    )


def evaluate_source(
    source: str | Path,
    protocols: Sequence[Protocol],
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Evaluation, Evaluator]:
    """Measures a run, a checkpoint or a public detector (see `load_detector`) on validation data.

    The data are those it was trained with, or those of the YAML file `config`; `overrides` change them. The evaluator
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
        loader = evaluation_loader(
            dataset,
            detector,
            batch_size=settings.eval.batch_size,
            workers=settings.loader.workers,
            proposals=proposals_for(detector, dataset, settings.data.root, workers=settings.loader.workers),
        )
        evaluator = build_evaluator(dataset, settings.eval.coco_backend)
        evaluation = evaluate(detector, loader, evaluator, protocols, device=device, amp=settings.eval.amp)
        return evaluation, evaluator

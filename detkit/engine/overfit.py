"""A few images learned by heart: the first thing to try when a score is zero. It says which part does not learn."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from detkit.config import UserError
from detkit.data.build import build_dataset
from detkit.data.dataset import ImageDataset
from detkit.detectors.build import learned_columns
from detkit.engine import distributed
from detkit.engine.checks import check_columns, check_device
from detkit.engine.initialise import initialise
from detkit.engine.loaders import evaluation_loader
from detkit.engine.log import RunLog
from detkit.engine.parts import is_in, part_names
from detkit.engine.schedule import StepConfig
from detkit.engine.settings import RunConfig
from detkit.engine.sources import check_source
from detkit.engine.train import Run, TrainingData, new_detector
from detkit.engine.validation import Validation
from detkit.evaluation.store import DetectionStore
from detkit.evaluation.voc import voc_ap
from detkit.ops.iou import box_iou
from detkit.ops.nms import nms
from detkit.structures import Batch, Categories, Detections, GroundTruth

WARMUP = 10  # steps, at most


@dataclass(frozen=True)
class Overfitting:
    """What learning a few images by heart has come to; numbers before and after it in pairs.

    losses          by name
    gradients       norm of the gradient of each part; None: the part is frozen
    ap50            mean over the classes of the average precision at an IoU of 0.5, on the same images
    box_ap50        the same if there were one class only: whether the boxes are right
    box_recall      objects with a detection of an IoU of 0.5, of whatever class
    num_detections  on all images
    lr              of the optimizer, without factors
    """

    losses: dict[str, tuple[float, float]]
    gradients: dict[str, tuple[float, float] | None]
    ap50: float
    box_ap50: float
    box_recall: float
    num_images: int
    num_objects: int
    num_detections: int
    batch_size: int
    steps: int
    lr: float


def overfit(config: RunConfig, num_images: int = 8, minutes: float = 1.0) -> Overfitting:
    """Trains on `num_images` training images that have objects, as they are, and measures on the same ones.

    The detector, its losses and the optimizer are those of `config`, at its full learning rate; without augmentation,
    schedule and average of weights. Nothing is left on disk but proposals, for a detector that is given them. Raises
    UserError if no image has an object.
    """
    with distributed.process_group(config.device) as device, tempfile.TemporaryDirectory() as folder:
        check_device(config.train, device)
        if config.train.init:
            check_source(config.train.init)
        dataset = _training_images(config, num_images)
        detector = new_detector(config, dataset.categories)
        if config.train.init:
            initialise(detector, config.train.init)
        settings = overfit_settings(config, len(dataset), minutes)
        run = Run(detector, TrainingData(dataset, None, Path(config.data.root)), settings, Path(folder), device)
        batches = evaluation_loader(
            dataset,
            detector,
            batch_size=settings.train.batch_size,
            workers=0,
            proposals=run.train_proposals,
            with_targets=True,
        )
        run.loader = SameBatches(batches)  # type: ignore[assignment]  # the loop asks for nothing more
        run.log = RunLog(Path(folder), enabled=False)
        losses_before, gradients_before = losses_and_gradients(run)
        train_until_time_is_over(run)
        losses_after, gradients_after = losses_and_gradients(run)
        run.finish()
        store = detect(run, dataset)
    return Overfitting(
        losses={
            name: (losses_before.get(name, 0.0), losses_after.get(name, 0.0))
            for name in {**losses_before, **losses_after}
        },
        gradients={
            part: None if norm is None else (norm, gradients_after[part] or 0.0)
            for part, norm in gradients_before.items()
        },
        **measure(store),
        num_images=len(dataset),
        num_objects=int((~dataset.objects.ignore).sum()),
        batch_size=settings.train.batch_size,
        steps=run.step,
        lr=settings.train.optimizer.lr,
    )


class SameBatches(list[Batch]):
    """Batches that stay in memory, the same in every epoch."""

    def set_epoch(self, epoch: int, start: int = 0) -> None: ...


def _training_images(config: RunConfig, count: int) -> ImageDataset:
    """Up to `count` images that have objects, with what the detector learns of them."""
    columns = learned_columns(config.model)
    dataset = build_dataset(config.data, "train", columns=columns)
    check_columns(dataset, config.model.name, columns)
    return dataset.take(images_with_objects(dataset, count))


def images_with_objects(dataset: ImageDataset, count: int) -> list[int]:
    """Up to `count` images with objects that are not ignored, from all over the data set."""
    indices = np.unique(dataset.image_of_object[~dataset.objects.ignore])
    if not len(indices):
        raise UserError(f"{dataset.name}: no object to learn; see what the data set has with `detkit show`")
    places = np.linspace(0, len(indices) - 1, min(count, len(indices)))
    return [int(index) for index in indices[places.round().astype(int)]]


def overfit_settings(config: RunConfig, num_images: int, minutes: float) -> RunConfig:
    """`config` at its full learning rate, after few steps of warm-up, until the time is over."""
    train = config.train
    changes = {
        "batch_size": min(train.batch_size, num_images),
        "accumulate": 1,
        "schedule": StepConfig(),
        "warmup": train.warmup.model_copy(update={"iterations": min(train.warmup.iterations, WARMUP)}),
        "ema": None,
        "patience": None,
        "max_minutes": minutes,
    }
    loader = config.loader.model_copy(update={"workers": 0, "repeat_threshold": None})
    return config.model_copy(update={"train": train.model_copy(update=changes), "loader": loader})


def train_until_time_is_over(run: Run) -> None:
    with tqdm(total=1.0, bar_format="{desc} {bar} {elapsed}", leave=False) as bar:
        while not run.stopping.time_is_over:
            run.train_epoch()
            bar.update(min(run.stopping.elapsed, 1.0) - bar.n)
            bar.set_description(f"step {run.step}, loss {run.log.records[-1]['loss']:.3f}")


def losses_and_gradients(run: Run) -> tuple[dict[str, float], dict[str, float | None]]:
    """The losses by name, and the norm of the gradient of each part, over all images; no step is taken."""
    torch.manual_seed(0)  # heads that sample take the same before and after
    run.detector.train()
    run.frozen.hold()
    losses: dict[str, float] = {}
    for batch in run.loader:
        for name, loss in run.backward(batch, len(run.loader)).items():
            losses[name] = losses.get(name, 0.0) + loss.item() / len(run.loader)
    norms = {part: gradient_norm(run, part) for part in part_names(run.detector)}
    run.optimizer.zero_grad(set_to_none=True)
    return losses, norms


def gradient_norm(run: Run, part: str) -> float | None:
    """None: all of the part is frozen. 0: it is to be trained, but no gradient reaches it."""
    parameters = [
        parameter
        for name, parameter in run.detector.named_parameters()
        if parameter.requires_grad and is_in(name, part)
    ]
    squares = sum(float(parameter.grad.pow(2).sum()) for parameter in parameters if parameter.grad is not None)
    return math.sqrt(squares) / run.scaler.get_scale() if parameters else None


def detect(run: Run, dataset: ImageDataset) -> DetectionStore:
    validation = Validation(run.detector, dataset, run.settings, run.data.proposals or run.folder)
    validation.measure(run.evaluated, run.device)
    return validation.store


def measure(store: DetectionStore) -> dict[str, Any]:
    """`ap50`, `box_ap50`, `box_recall` and `num_detections` of `Overfitting`."""
    truths, detections = store.ground_truth, list(store.in_order())
    one_class = Categories.of_names(["object"])
    any_class = [without_classes(each, one_class) for each in detections]
    objects = [_of_one_class(truth) for truth in truths]
    return {
        "ap50": float(np.nanmean(voc_ap(truths, detections, len(store.categories), eleven_point=False))),
        "box_ap50": float(voc_ap(objects, any_class, 1, eleven_point=False)[0]),
        "box_recall": recall(truths, any_class),
        "num_detections": sum(map(len, detections)),
    }


def without_classes(detections: Detections, one_class: Categories) -> Detections:
    """The same as if they were of one class: of those that overlap the best stays."""
    keep = nms(detections.boxes, detections.scores, 0.5)
    objects = detections.objects.take(keep)
    return Detections(replace(objects, labels=torch.zeros_like(objects.labels)), one_class)


def _of_one_class(truth: GroundTruth) -> GroundTruth:
    return replace(truth, objects=replace(truth.objects, labels=np.zeros_like(truth.objects.labels)))


def recall(truths: Sequence[GroundTruth], detections: Sequence[Detections]) -> float:
    """The share of the objects that are not ignored with a detection of an IoU of at least 0.5."""
    found: list[Tensor] = []
    for truth, each in zip(truths, detections, strict=True):
        boxes = torch.from_numpy(truth.objects.boxes[~truth.objects.ignore])
        overlap = torch.cat([box_iou(boxes, each.boxes), torch.zeros(len(boxes), 1)], dim=1)
        found.append(overlap.amax(dim=1) >= 0.5)
    return float(torch.cat(found).float().mean())

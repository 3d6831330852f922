"""What stops a training: settings that do not fit the device or the data, no memory, numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from detkit.config import UserError, nearest
from detkit.data.dataset import ImageDataset
from detkit.data.loader import lacks_memory
from detkit.engine.settings import TrainConfig
from detkit.structures import Batch, Categories, Column, ImageId

REMEDY = "start again with a lower train.optimizer.lr, a longer train.warmup or with train.clip_norm"


class TrainingError(UserError):
    """Training cannot go on."""


def check_device(settings: TrainConfig, device: torch.device) -> None:
    """Raises UserError for settings that this device cannot run."""
    if settings.amp == "fp16" and device.type != "cuda":
        raise UserError("train.amp: fp16 needs a CUDA device; use bf16 or off on the CPU")
    if settings.sync_bn and device.type != "cuda":
        raise UserError("train.sync_bn: needs CUDA devices")


def check_categories(detector: Categories, dataset: Categories) -> None:
    """Raises UserError unless a label means the same class to the detector and in the data that it trains on."""
    if detector.names != dataset.names:
        raise UserError(
            f"the detector has the classes {', '.join(detector.names)}, but the training data "
            f"{', '.join(dataset.names)}: build it with the categories of the data, dataset.categories"
        )


def check_columns(dataset: ImageDataset, model: str, columns: Sequence[Column]) -> None:
    """Raises UserError, with what is unusual in the data, unless some objects have what is learned beside boxes."""
    for column in columns:
        if getattr(dataset.objects, column) is None:
            unusual = f" ({'; '.join(dataset.unusual)})" if dataset.unusual else ""
            raise UserError(
                f"model.name: {model} learns {column}, but no object of {dataset.name} has any{unusual}; give it data "
                "that have, or train a detector of boxes"
            )


def class_weights(factors: Mapping[str, float], categories: Categories) -> Tensor:
    """`[K]`: the factor of each class, 1 where none is given. Raises UserError for a class that there is not."""
    for name in factors:
        if name not in categories.names:
            raise UserError(f"train.class_weights: the data have no class {name!r}{nearest(name, categories.names)}")
    return torch.tensor([factors.get(name, 1.0) for name in categories.names])


@contextmanager
def explaining_memory(batch: Batch, setting: str) -> Iterator[None]:
    """Raises TrainingError where this batch finds no memory; `setting` is what has its size."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        height, width = batch.images.shape[-2:]
        images = f"{len(batch)} image{'s' * (len(batch) != 1)} of {width} x {height} (w x h) px"
        raise TrainingError(
            f"out of memory in a batch of {images}; set {setting} lower, or the size in model.input"
        ) from error


def check_losses(losses: dict[str, float], image_ids: Sequence[ImageId], step: int) -> dict[str, float]:
    """The same losses. Raises TrainingError with the names of the images if one is not finite."""
    if not all(math.isfinite(value) for value in losses.values()):
        values = ", ".join(f"{name} {value}" for name, value in losses.items())
        raise TrainingError(
            f"the loss is not finite at step {step}: {values}; images: {', '.join(map(str, image_ids))}; {REMEDY}"
        )
    return losses


def check_gradient(norm: float, image_ids: Sequence[ImageId], step: int) -> None:
    """Raises TrainingError with the names of the images if the norm of the gradient is not finite."""
    if not math.isfinite(norm):
        raise TrainingError(
            f"the gradient is not finite at step {step}: its norm is {norm}; images: "
            f"{', '.join(map(str, image_ids))}; {REMEDY}"
        )

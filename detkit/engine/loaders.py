"""Batches for a detector: resized by its own input spec, divided among the processes."""

from __future__ import annotations

from collections.abc import Collection

from detkit.data.dataset import ImageDataset
from detkit.data.loader import Loader, build_loader
from detkit.data.proposal_folder import ProposalFolder
from detkit.data.transforms import Augment
from detkit.detectors.detector import AnyDetector
from detkit.engine import distributed
from detkit.engine.settings import RunSettings
from detkit.structures import COLUMNS, Batch, Column


def training_loader(
    dataset: ImageDataset,
    detector: AnyDetector,
    settings: RunSettings,
    proposals: ProposalFolder | None,
    columns: Collection[Column] = COLUMNS,
) -> Loader[Batch]:
    """Augmented images in a new order every epoch. `columns`: what the detector learns beside boxes."""
    keypoints = dataset.categories.keypoints
    flip_pairs = keypoints.flip_pairs if keypoints else ()
    return build_loader(
        dataset,
        place=detector.input.place,
        stride=detector.input.stride,
        batch_size=settings.train.batch_size,
        augment=Augment(settings.augment, settings.train.epochs, flip_pairs),
        seed=settings.train.seed,
        workers=settings.loader.workers,
        aspect_grouping=settings.loader.aspect_grouping,
        shuffle=True,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        with_targets=True,
        draw_every=detector.input.resize.draw_every,
        proposals=proposals,
        repeat_threshold=settings.loader.repeat_threshold,
        draft=settings.loader.draft,
        columns=columns,
        clip=detector.input.clip,
    )


def evaluation_loader(
    dataset: ImageDataset,
    detector: AnyDetector,
    *,
    batch_size: int,
    workers: int,
    proposals: ProposalFolder | None = None,
    with_targets: bool = False,
    divided: bool = True,
) -> Loader[Batch]:
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
        clip=detector.input.clip,
    )

"""Batches of a data set: images decoded, augmented and collated in worker processes of one thread each.

A UserError in a worker reaches the user as it was raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import cv2
import torch
from pydantic import Field
from torch.utils.data import DataLoader

from detkit.config import Config, UserError
from detkit.data.dataset import ImageDataset
from detkit.data.proposal_folder import ProposalFolder
from detkit.data.sampler import BatchSampler, Key
from detkit.data.transfer import CollateInWorker
from detkit.data.transforms import Augment
from detkit.structures import Batch, ImageId, ImageInfo, Sample, Size

Place = Callable[[ImageId, Size, int | None], ImageInfo]  # a detector's resize rule: (id, (h, w) of the picture, draw)
ItemT = TypeVar("ItemT", covariant=True)
BatchT = TypeVar("BatchT")


class LoaderConfig(Config):
    """Settings of the loader.

    workers          processes that decode and augment beside the training; 0: none
    aspect_grouping  batches hold only upright or only wide images, which saves padding
    """

    workers: int = Field(2, ge=0)
    aspect_grouping: bool = True


def build_loader(
    dataset: ImageDataset,
    *,
    place: Place,
    stride: int,
    batch_size: int,
    augment: Augment | None,
    seed: int,
    workers: int,
    shuffle: bool,
    aspect_grouping: bool,
    rank: int = 0,
    world_size: int = 1,
    with_targets: bool,
    draw_every: int = 1,
    proposals: ProposalFolder | None = None,
) -> DataLoader[Batch]:
    """Batches of `batch_size` images on each of `world_size` ranks; call `loader.batch_sampler.set_epoch` every epoch.

    place, stride    the detector's resize rule, and the multiple to which batches are padded
    augment          applied to every image before it is resized; None in evaluation
    seed             of the order, the augmentation and the draws
    shuffle          training: a new order every epoch, and a `draw` for `place`. Otherwise images come in the order of
                     the data set and `draw` is None
    aspect_grouping  batches of only upright or only wide images, if `shuffle`
    with_targets     whether batches carry the objects
    draw_every       batches that share a draw; 0: each image has its own
    proposals        of every image, for detectors with external proposals
    """
    sampler = BatchSampler(
        dataset.aspect_ratios,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        aspect_grouping=aspect_grouping,
        rank=rank,
        world_size=world_size,
        draw_every=draw_every,
    )
    return Loader(
        _PreparedImages(dataset, augment, place, proposals),
        CollateInWorker(stride, with_targets, workers),
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Without its own generator, the loader takes a number from the global one in every epoch.
        generator=torch.Generator().manual_seed(seed),
    )


class _PreparedImages:
    """The images of a data set by key, decoded and augmented, each with its interpolation: `collate` resizes them."""

    def __init__(
        self, dataset: ImageDataset, augment: Augment | None, place: Place, proposals: ProposalFolder | None
    ) -> None:
        self.dataset, self.augment, self.place, self.proposals = dataset, augment, place, proposals

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> tuple[Sample, ImageInfo, int]:
        index, seed, draw = key
        try:
            sample = self.dataset.load(index)
            if self.proposals is not None:
                sample = replace(sample, proposals=self.proposals.load(self.dataset.path(index)))
            interpolation = cv2.INTER_LINEAR
            if self.augment is not None:
                sample, interpolation = self.augment(sample, seed), self.augment.interpolation(seed)
            height, width = sample.image.shape[:2]
            info = self.place(sample.image_id, (height, width), draw)
            return sample, info, interpolation
        except UserError:
            raise
        except Exception as error:
            raise RuntimeError(f"{self.dataset.path(index)}: {type(error).__name__}: {error}") from error


class Items(Protocol[ItemT]):
    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> ItemT: ...


class Loader(DataLoader[BatchT]):
    """`options` are those of DataLoader.

    torch would raise a new exception in place of a worker's, with the stack trace as its message. So a UserError leaves
    the worker as a value, instead of its batch, and is raised here.
    """

    def __init__(self, items: Items[ItemT], collate: Callable[[list[ItemT]], BatchT], **options: Any) -> None:
        super().__init__(
            _CatchUserErrors(items),  # type: ignore[arg-type]
            collate_fn=partial(_collate, collate),
            worker_init_fn=_init_worker,
            **options,
        )

    def __iter__(self) -> Iterator[BatchT]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _CatchUserErrors:
    """`items`, with the UserError itself instead of an item that raises one."""

    def __init__(self, items: Items[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.items[key]
        except UserError as error:
            return error


def _collate(collate: Callable[[list[Any]], Any], items: Sequence[Any]) -> Any:
    errors = [item for item in items if isinstance(item, UserError)]
    return errors[0] if errors else collate(list(items))


def _init_worker(_: int) -> None:
    cv2.setNumThreads(0)  # a worker is one thread; more would compete with the other workers
    torch.set_num_threads(1)

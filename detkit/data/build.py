"""From the configuration to batches: data set, batch sampler, loader.

Every random decision about an image is a function of (run seed, epoch, index), and every one about a batch of (run
seed, epoch, batch): the number of worker processes changes nothing, and an epoch can be repeated or resumed exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader, Sampler

from detkit.config import Config, UserError
from detkit.data.coco import COCOConfig, read_coco
from detkit.data.dataset import ImageDataset
from detkit.data.loader import Loader
from detkit.data.proposal_folder import ProposalFolder
from detkit.data.shapes import ShapesConfig, read_shapes
from detkit.data.transfer import CollateInWorker
from detkit.data.transforms import Augment
from detkit.data.voc import VOCConfig, read_voc
from detkit.data.yolo import YOLODataConfig, read_yolo
from detkit.structures import Batch, ImageId, ImageInfo, Sample, Size

DataConfig = Annotated[VOCConfig | COCOConfig | YOLODataConfig | ShapesConfig, Field(discriminator="name")]
Place = Callable[[ImageId, Size, int | None], ImageInfo]  # a detector's resize rule: (id, (h, w) of the picture, draw)
Key = tuple[int, int, int | None]  # (index of the image, its seed, its draw, which its batch may share)


class LoaderConfig(Config):
    """Settings of the loader.

    workers          processes that decode and augment beside the training; 0: none
    aspect_grouping  batches hold only upright or only wide images, which saves padding
    """

    workers: int = Field(2, ge=0)
    aspect_grouping: bool = True


def build_dataset(
    config: VOCConfig | COCOConfig | YOLODataConfig | ShapesConfig, split: Literal["train", "val"]
) -> ImageDataset:
    """The checked data set of a split; both splits have the same categories. Raises DataError."""
    match config:
        case VOCConfig():
            return read_voc(config, split)
        case COCOConfig():
            return read_coco(config, split)
        case YOLODataConfig():
            return read_yolo(config, split)
        case ShapesConfig():
            return read_shapes(config, split)


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


class BatchSampler(Sampler[list[Key]]):
    """Lists of keys, a list a batch, reproducible from (seed, epoch).

    Batches of `batch_size * world_size` images are formed first, of one orientation if `aspect_grouping` and `shuffle`.
    Rank r takes every `world_size`-th image from the r-th on, so all ranks together see what one alone would see. The
    last batch of an orientation may be smaller; one with fewer images than ranks repeats some, so that none goes idle.
    """

    def __init__(
        self,
        aspect_ratios: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        aspect_grouping: bool,
        rank: int = 0,
        world_size: int = 1,
        draw_every: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"expected batch_size >= 1 and 0 <= rank < world_size, got {batch_size=} {rank=} {world_size=}"
            )
        wide = aspect_ratios >= 1
        indices = np.arange(len(aspect_ratios))
        self.groups = [indices[wide], indices[~wide]] if aspect_grouping and shuffle else [indices]
        self.global_size = batch_size * world_size
        self.seed, self.shuffle, self.rank, self.world_size = seed, shuffle, rank, world_size
        self.draw_every = draw_every
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(group) // self.global_size) for group in self.groups)

    def __iter__(self) -> Iterator[list[Key]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = self._global_batches(rng)
        draws = rng.integers(2**31, size=len(batches)).tolist() if self.shuffle else [None] * len(batches)
        for number, batch in enumerate(batches):
            if len(batch) < self.world_size:
                batch = np.resize(batch, self.world_size)
            keys = [(index, self._seed_of(index)) for index in batch[self.rank :: self.world_size].tolist()]
            if self.draw_every:
                draw = draws[number // self.draw_every]
                yield [(index, seed, draw) for index, seed in keys]
            else:
                yield [(index, seed, seed if self.shuffle else None) for index, seed in keys]

    def _global_batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        batches = []
        for group in self.groups:
            order = rng.permutation(group) if self.shuffle else group
            batches += [order[start : start + self.global_size] for start in range(0, len(order), self.global_size)]
        if self.shuffle:
            batches = [batches[number] for number in rng.permutation(len(batches))]
        return batches

    def _seed_of(self, index: int) -> int:
        return int(np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0])


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

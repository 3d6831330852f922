"""The augmentation of a training image: a list of changes, each applied to what the one before it has left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field, TypeAdapter
from typing_extensions import override

from detkit.data.transforms.affine import HorizontalFlipConfig, RandomAffineConfig, VerticalFlipConfig
from detkit.data.transforms.colour import HSVConfig, HSVShiftConfig, PhotometricConfig, apply_colours
from detkit.data.transforms.covering import CopyPasteConfig, CutoutConfig
from detkit.data.transforms.entry import Draws, Others, Transform
from detkit.data.transforms.mixing import MixUpConfig, MosaicConfig
from detkit.data.transforms.presets import PRESETS, Preset, open_augment
from detkit.data.transforms.scales import JitterConfig, LargeScaleJitterConfig, ScaleJitterConfig, TranslateConfig
from detkit.data.transforms.windows import CropConfig, ExpandConfig, IoUCropConfig, ResizeCropConfig
from detkit.structures import Column, Sample

INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)


class RandomInterpolationConfig(Transform):
    """SSD: the resize to the input's size draws one of five interpolations; it is bilinear otherwise."""

    name: Literal["random_interpolation"] = "random_interpolation"

    @override
    def apply(self, sample: Sample, draws: Draws) -> Sample:
        """Nothing yet: `Augment.interpolation` draws for the resize that comes last."""
        return sample


AugmentEntry = Annotated[
    HorizontalFlipConfig
    | VerticalFlipConfig
    | RandomAffineConfig
    | PhotometricConfig
    | HSVConfig
    | HSVShiftConfig
    | ExpandConfig
    | IoUCropConfig
    | ResizeCropConfig
    | CropConfig
    | ScaleJitterConfig
    | TranslateConfig
    | JitterConfig
    | LargeScaleJitterConfig
    | MosaicConfig
    | MixUpConfig
    | CopyPasteConfig
    | CutoutConfig
    | RandomInterpolationConfig
    | Preset,
    Field(discriminator="name"),
]


def _allow_short_forms(schema: dict[str, Any]) -> None:
    """In the JSON schema: a preset by its name alone, and as an item of the list."""
    items = {"anyOf": [schema.pop("items"), {"type": "string"}]}
    schema["anyOf"] = [{"type": schema.pop("type"), "items": items}, {"enum": list(PRESETS)}]


AugmentList = Annotated[tuple[AugmentEntry, ...], Field(json_schema_extra=_allow_short_forms)]


def parse_augment(value: str | Sequence[Any]) -> AugmentList:
    """The list of a preset's name, or of plain values as they stand in a configuration."""
    entries: AugmentList = TypeAdapter(AugmentList).validate_json(json.dumps(open_augment(value)))
    return entries


def used_columns(entries: Sequence[Transform | Preset]) -> tuple[Column, ...]:
    """What of objects the entries of a list look at beside boxes."""
    return tuple(dict.fromkeys(column for entry in _opened(entries) for column in entry.uses))


def mixing(entries: Sequence[Transform | Preset]) -> list[str]:
    """The names of the entries of a list that take other samples of the data set."""
    return [entry.name for entry in _opened(entries) if entry.mixes]


def _opened(entries: Sequence[Transform | Preset]) -> list[Transform]:
    """The entries, those of presets in their place."""
    opened = [parse_augment(entry.name) if isinstance(entry, Preset) else [entry] for entry in entries]
    return [entry for part in opened for entry in part if isinstance(entry, Transform)]


class Augment:
    """`augment(sample, seed, epoch, others)`: the sample as it might also have been photographed.

    It is a function of these four. `others(rng, count)` gives samples of the data set, not augmented, drawn by `rng`;
    without it, an entry that mixes pictures raises ValueError.
    """

    def __init__(
        self,
        entries: Sequence[Transform | Preset],
        epochs: int | None = None,
        flip_pairs: Sequence[tuple[int, int]] = (),
    ) -> None:
        """
        epochs      of the training, from whose end an `until_epoch` below 0 counts
        flip_pairs  keypoints that change places when the picture is mirrored
        """
        self.entries = _opened(entries)
        self.epochs, self.flip_pairs = epochs, tuple(flip_pairs)
        if epochs is None and any((entry.until_epoch or 0) < 0 for entry in self.entries):
            raise ValueError("an until_epoch below 0 counts from the end: Augment needs the number of epochs")
        for entry in self.entries:
            entry.prepare()

    @property
    def mixes(self) -> bool:
        """Whether any entry takes other samples of the data set."""
        return bool(mixing(self.entries))

    @property
    def uses(self) -> tuple[Column, ...]:
        """What of objects its entries look at beside boxes, where the data have it."""
        return used_columns(self.entries)

    def __call__(self, sample: Sample, seed: int, epoch: int = 0, others: Others | None = None) -> Sample:
        draws = Draws(np.random.default_rng(seed), others, self.flip_pairs)
        for entry in self.entries:
            if entry.happens(epoch, self.epochs, draws.rng):
                sample = entry.apply(sample, draws)
        return apply_colours(sample)

    def interpolation(self, seed: int, epoch: int = 0) -> int:
        """OpenCV's interpolation with which the sample of this seed is resized to the input's size."""
        rng = np.random.default_rng((seed, 1))
        for entry in self.entries:
            if isinstance(entry, RandomInterpolationConfig) and entry.happens(epoch, self.epochs, rng):
                return int(rng.choice(INTERPOLATIONS))
        return cv2.INTER_LINEAR

"""The settings of a run: its detector, its data, and how it trains and measures. The top of every YAML file."""

from __future__ import annotations

import re
from copy import copy
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from detkit.config import Config
from detkit.data.build import DataConfig
from detkit.data.loader import LoaderConfig
from detkit.data.transforms import AugmentList, mixing, open_augment, parse_augment
from detkit.detectors.build import DetectorConfig, clip_of
from detkit.engine.amp import AMP
from detkit.engine.distributed import DEVICES
from detkit.engine.ema import EMAConfig
from detkit.engine.optim import OptimizerConfig
from detkit.engine.schedule import ScheduleConfig, StepConfig, WarmupConfig
from detkit.evaluation.protocols import EvalConfig


class TrainConfig(Config):
    # what the weights start from: a run, a checkpoint, public weights, or a file of tensors; see docs/finetuning.md
    init: str | None = Field(None, min_length=1)
    epochs: int = Field(ge=1)
    max_minutes: float | None = Field(None, gt=0)  # the run ends after this time; a cosine has reached its end by then
    patience: int | None = Field(None, ge=1)  # validations without a better score after which the run ends
    batch_size: int = Field(ge=1)  # images of each process
    accumulate: int = Field(1, ge=1)  # batches whose gradients make one optimizer step
    freeze: tuple[str, ...] = ()  # parts of the detector that stay as they are: backbone, neck, backbone.layer1
    class_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)  # factors on the loss of
    # the class scores where this class is the target, by its name; 1 for the others and for background
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = StepConfig()
    warmup: WarmupConfig = WarmupConfig()
    clip_norm: float | None = Field(None, gt=0)  # largest norm of the whole gradient
    amp: AMP = "off"  # mixed precision: bf16 on CPU and CUDA, fp16 on CUDA; see eval.amp
    ema: EMAConfig | None = None  # validates and keeps the averaged weights
    sync_bn: bool = False  # batch statistics over all processes
    seed: int = Field(0, ge=0)
    eval_every: int = Field(1, ge=1)  # epochs; the last one is always evaluated


class RunSettings(Config):
    """How a run trains and measures, whatever its detector and data are."""

    augment: AugmentList = parse_augment("flip")  # or a preset's name; docs/augmentation.md lists the entries
    loader: LoaderConfig = LoaderConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    device: str = "auto"  # auto, cpu, cuda or cuda:N

    @classmethod
    def open(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """With the entries of `augment` in place of presets, and of the default."""
        opened = copy(tree)
        opened["augment"] = open_augment(tree.get("augment", "flip"))
        return opened

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(DEVICES, value):
            raise ValueError(f"expected auto, cpu, cuda or cuda:N, found {value!r}")
        return value


class _ModelAndData(Config):
    model: DetectorConfig
    data: DataConfig


class RunConfig(RunSettings, _ModelAndData):
    """The top of every YAML file in `configs/`."""

    at_test: ClassVar[tuple[str, ...]] = ("model", "data", "loader", "eval", "device")

    @model_validator(mode="after")
    def _clips_come_from_videos(self) -> RunConfig:
        clip = clip_of(self.model)
        if clip is None:
            return self
        if not self.data.has_videos:
            raise ValueError(
                f"data.name: the model takes clips of {clip.frames} frames; expected videos, as clips or "
                f"moving_shapes, found {self.data.name}"
            )
        if mixed := mixing(self.augment):
            raise ValueError(f"augment: {mixed[0]} joins pictures, which clips cannot be; leave it out")
        return self

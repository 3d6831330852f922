"""The settings of a run: its detector, its data, and how it trains and measures. The top of every YAML file."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from detkit.config import Config
from detkit.data.build import DataConfig
from detkit.data.loader import LoaderConfig
from detkit.data.transforms import AugmentConfig
from detkit.detectors.build import DetectorConfig
from detkit.engine.amp import AMP
from detkit.engine.distributed import DEVICES
from detkit.engine.ema import EMAConfig
from detkit.engine.optim import OptimizerConfig
from detkit.engine.schedule import ScheduleConfig, StepConfig, WarmupConfig
from detkit.evaluation.protocols import EvalConfig


class TrainConfig(Config):
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)  # images of each process
    accumulate: int = Field(1, ge=1)  # batches whose gradients make one optimizer step
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

    augment: AugmentConfig = AugmentConfig()
    loader: LoaderConfig = LoaderConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    device: str = "auto"  # auto, cpu, cuda or cuda:N

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

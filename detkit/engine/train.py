"""The training loop, in sight: `train` for objects built in Python, `train_config` for a YAML file."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from detkit.data.build import build_dataset
from detkit.data.checks import NoValidation
from detkit.data.dataset import ImageDataset
from detkit.data.transforms import used_columns
from detkit.detectors.build import build_detector, learned_columns
from detkit.detectors.detector import AnyDetector
from detkit.engine import distributed
from detkit.engine.amp import autocast
from detkit.engine.checkpoint import load_checkpoint, save_checkpoint
from detkit.engine.checks import (
    check_categories,
    check_columns,
    check_device,
    check_gradient,
    check_losses,
    class_weights,
    explaining_memory,
)
from detkit.engine.ema import EMA
from detkit.engine.environment import record_environment, record_minutes
from detkit.engine.freeze import Freeze
from detkit.engine.header import describe_run
from detkit.engine.initialise import initialise, without_public_weights
from detkit.engine.loaders import evaluation_loader, training_loader
from detkit.engine.log import RECORDS, RunLog, read_records
from detkit.engine.optim import build_optimizer, load_state, set_lr
from detkit.engine.prediction.interrupts import Stopped
from detkit.engine.proposal_search import proposals_for
from detkit.engine.random_state import random_state, seed_epoch
from detkit.engine.run import BEST, LAST, detector_state, has_checkpoint, load_training_state, save_config
from detkit.engine.run_folder import claim_folder
from detkit.engine.schedule import lr_factor
from detkit.engine.settings import RunConfig, RunSettings
from detkit.engine.sources import check_source, load_weights
from detkit.engine.speed import accelerate
from detkit.engine.stopping import Stopping, Termination, check_patience
from detkit.engine.throughput import Throughput
from detkit.engine.validation import Validation
from detkit.evaluation.evaluator import Evaluation
from detkit.evaluation.report import format_table
from detkit.structures import COLUMNS, Batch, Categories, Column, ImageId


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and what it is measured on.

    val        None: nothing is measured, and the last checkpoint is the result
    proposals  folder in which proposals are stored, for detectors that are given them; None: the folder of the run
    columns    what of the objects the detector learns beside boxes; the rest is for the augmentation alone
    """

    train: ImageDataset
    val: ImageDataset | None
    proposals: Path | None = None
    columns: tuple[Column, ...] = COLUMNS


def train_config(
    config: RunConfig, folder: Path, *, resume: bool = False, stop_after: int | None = None
) -> Evaluation | None:
    """Builds the data and the detector of `config` and trains; see `train`."""
    with distributed.process_group(config.device) as device:
        check_device(config.train, device)
        if config.train.init and not resume:
            check_source(config.train.init)
        with distributed.first_process_first():
            data = training_data(config)
        detector = new_detector(config, data.train.categories)
        return train(detector, data, config, folder, resume=resume, stop_after=stop_after)


def training_data(config: RunConfig) -> TrainingData:
    """Both splits of the data of `config`, or only the first where there is no other."""
    columns = learned_columns(config.model)
    train_set = build_dataset(config.data, "train", columns={*columns, *used_columns(config.augment)})
    check_columns(train_set, config.model.name, columns)
    try:
        val_set = build_dataset(config.data, "val", columns=columns)
    except NoValidation:
        val_set = None
    return TrainingData(train_set, val_set, Path(config.data.root), columns)


def new_detector(config: RunConfig, categories: Categories) -> AnyDetector:
    """The detector of `config` before its training, with the random weights of its seed."""
    torch.manual_seed(config.train.seed)
    model = without_public_weights(config.model) if config.train.init else config.model
    detector = build_detector(model, categories)
    accelerate(detector)
    return detector


def train(
    detector: AnyDetector,
    data: TrainingData,
    settings: RunSettings,
    folder: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
) -> Evaluation | None:
    """Trains `detector` in `folder`, or goes on there, and returns the last evaluation.

    `stop_after` ends the run after that epoch as an interruption would. Resumed, it gives what an uninterrupted run
    gives, to the bit on the CPU: every random number is a function of the seed, the epoch and the place.
    """
    with distributed.process_group(settings.device) as device, claim_folder(folder):
        check_device(settings.train, device)
        check_categories(detector.categories, data.train.categories)
        check_patience(settings.train, data.val)
        resume = resume and has_checkpoint(folder)
        if settings.train.init and not resume:
            initialise(detector, settings.train.init)
        run = Run(detector, data, settings, folder, device)
        if resume:
            run.resume()
        return run.run(stop_after)


class Run:
    """A training in progress: what it needs, and how far it is.

    detector     the one that is trained; `evaluated` is the one that is validated and saved as the result: its
                 average where there is one, else itself
    epoch, step  epochs and optimizer steps done
    batches      done of the epoch in progress; where SIGTERM ends a run, with the state of each process in `random`
    stopping     knows when it ends, and the best score so far
    finished     nothing is left to learn, the stage after gradient descent included
    validated    the weights were measured after the last epoch, or the run is new
    """

    def __init__(
        self, detector: AnyDetector, data: TrainingData, settings: RunSettings, folder: Path, device: torch.device
    ) -> None:
        self.settings, self.data, self.folder, self.device = settings, data, folder, device
        if settings.train.class_weights:
            detector.set_class_weights(class_weights(settings.train.class_weights, detector.categories))
        detector = detector.to(device)
        if settings.train.sync_bn:
            detector = nn.SyncBatchNorm.convert_sync_batchnorm(detector)  # type: ignore[no-untyped-call]
        self.frozen = Freeze(detector, settings.train.freeze)
        self.detector = detector
        self.model: nn.Module = detector
        self.no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
        if distributed.world_size() > 1:
            self.model = model = DistributedDataParallel(detector)
            self.no_sync = model.no_sync
        self.optimizer = build_optimizer(settings.train.optimizer, detector)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.train.amp == "fp16")
        self.ema = EMA(settings.train.ema, detector) if settings.train.ema else None
        self.evaluated = self.ema.detector if self.ema else detector
        proposals = data.proposals or folder
        workers, chosen = settings.loader.workers, settings.loader.proposals
        self.train_proposals = proposals_for(detector, data.train, proposals, workers=workers, chosen=chosen)
        self.loader = training_loader(data.train, detector, settings, self.train_proposals, data.columns)
        self.validation = Validation(detector, data.val, settings, proposals) if data.val else None
        self.epoch = self.batches = self.step = self.images_seen = 0
        self.finished, self.validated, self.random = False, True, list[dict[str, Tensor]]()
        self.termination = Termination()
        self.throughput = Throughput(settings.loader.workers)
        self.stopping = Stopping(settings.train)

    def resume(self) -> None:
        """Loads the last checkpoint of the folder."""
        state = load_training_state(self.folder, self.detector.categories, self.settings.train.epochs)
        load_weights(self.detector, state["trained"], self.folder / LAST)
        load_state(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            load_weights(self.ema.detector, state["model"], self.folder / LAST)
        self.epoch, self.step, self.finished = state["epoch"], state["step"], state["finished"]
        self.images_seen = state["images_seen"]
        self.batches, self.random = state.get("batches", 0), state.get("random", [])
        best = load_checkpoint(self.folder / BEST) if (self.folder / BEST).exists() else None
        records = distributed.of_first(lambda: read_records(self.folder / RECORDS, self.step))
        self.validated = not self.epoch or any(row["kind"] == "val" and row["epoch"] == self.epoch for row in records)
        self.stopping.resume(best, self.epoch if self.validated else self.epoch - 1, state.get("minutes", 0.0))

    def run(self, stop_after: int | None = None) -> Evaluation | None:
        """The epochs that are left, each followed by a checkpoint and, if it is due, a validation.

        Returns the last evaluation; None if there was none.
        """
        train, evaluation, first_step, began = self.settings.train, None, self.step, time.monotonic()
        if distributed.rank() == 0:
            save_config(self.folder, self.settings)
        record_environment(self.folder, self.device)
        self.log = RunLog(self.folder, resume_step=self.step, enabled=distributed.rank() == 0)
        self.log.message(describe_run(self))
        has_stage = self.evaluated.finish_training is not None
        stop = self.stopping.reason(self.epoch) if self.epoch else None  # a new run has one step at least
        if stop and (self.finished or not has_stage):
            self.log.message(stop)
        if not self.validated and self.is_due(stop):  # the run ended while it was measured
            evaluation = self.validate()
            stop = self.stopping.reason(self.epoch)
        while not stop and self.epoch < (stop_after or math.inf):
            stop = self.train_and_save()
            if self.is_due(stop):
                evaluation = self.validate()
                stop = self.stopping.reason(self.epoch)
        if stop and has_stage and not self.finished:
            self.finish()
            evaluation = self.validate()
        if stop and self.step > first_step and self.epoch < train.epochs:
            self.log.message(f"ended early: {stop}")
        if evaluation:
            self.log.message(format_table(evaluation, self.settings.eval.protocol))
        self.log.close()
        record_minutes(self.folder, (time.monotonic() - began) / 60)
        return evaluation

    def is_due(self, stop: str | None) -> bool:
        """Whether the weights are to be measured after this epoch; `stop`: why it is the last one."""
        return self.finished or (not stop and self.epoch % self.settings.train.eval_every == 0)

    def train_and_save(self) -> str | None:
        """An epoch and its checkpoint; why the run ends after it, if it does. Raises Stopped after a SIGTERM."""
        with self.termination:
            self.train_epoch()
            stop = self.stopping.reason(self.epoch)
            self.finished = stop is not None and self.evaluated.finish_training is None
            self.save()
            leave = self.termination.has_come()
        if leave:
            self.log.message(f"SIGTERM: saved after step {self.step}")
            raise Stopped(signal.SIGTERM)
        return stop

    def train_epoch(self) -> None:
        """The rest of the epoch, or of it what is done until the time is over or SIGTERM comes."""
        train, batches = self.settings.train, len(self.loader)
        seed_epoch(train.seed, self.epoch, self.random, self.device)
        self.loader.set_epoch(self.epoch, self.batches)
        self.detector.train()
        self.frozen.hold()
        title = f"epoch {self.epoch + 1}/{train.epochs}"
        done, total = self.epoch * batches + self.batches, train.epochs * batches
        group: list[tuple[list[ImageId], dict[str, Tensor]]] = []  # images and losses of the batches of the next step
        progress = self.log.progress(self.loader, done=done, total=total, title=title)
        for index, batch in enumerate(self.throughput.watch(progress), self.batches):
            first = index // train.accumulate * train.accumulate
            size = min(train.accumulate, batches - first)
            is_last = index + 1 == first + size
            with nullcontext() if is_last else self.no_sync(), explaining_memory(batch, "train.batch_size"):
                losses = self.backward(batch, size)
            group.append(([info.image_id for info in batch.infos], losses))
            if is_last:
                self.optimizer_step(group, math.ceil(batches / train.accumulate))
                self.batches, group = index + 1, []
                leave = self.termination.has_come() and self.batches < batches
                last = self.batches == batches or self.stopping.time_is_over or leave
                self.log.step(self.step, self.epoch + 1, self.lr, last=last)
                self.log.message(self.throughput.report())
                if self.stopping.time_is_over:
                    break
                if leave:
                    return
        self.log.message(self.throughput.report(end_of_epoch=True))
        self.epoch, self.batches = self.epoch + 1, 0

    def backward(self, batch: Batch, group_size: int) -> dict[str, Tensor]:
        """Adds the gradients of one of `group_size` batches; its losses, which stay on the device."""
        batch = batch.to(self.device)
        self.detector.images_seen = self.images_seen
        with autocast(self.device, self.settings.train.amp):
            outputs = self.model(batch)
        losses = self.detector.criterion(outputs, batch.targets or ())
        total = torch.stack(list(losses.values())).sum() / group_size
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self.images_seen += len(batch)
        return {name: loss.detach() for name, loss in losses.items()}

    def optimizer_step(self, group: list[tuple[list[ImageId], dict[str, Tensor]]], steps_per_epoch: int) -> None:
        train = self.settings.train
        self.stopping.tick()
        elapsed = self.stopping.elapsed
        factor = lr_factor(train.schedule, train.warmup, self.step, steps_per_epoch, train.epochs, elapsed)
        set_lr(self.optimizer, factor)
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.detector.parameters(), train.clip_norm or math.inf)
        # the only wait for the device in a step: the losses and the norm come over together
        values = torch.stack([*(loss for _, losses in group for loss in losses.values()), norm]).tolist()
        for image_ids, losses in group:
            self.log.losses(check_losses(dict(zip(losses, values, strict=False)), image_ids, self.step))
            values = values[len(losses) :]
        if not self.scaler.is_enabled():  # fp16 overflows now and then; the scaler skips such a step
            check_gradient(values[0], [image_id for image_ids, _ in group for image_id in image_ids], self.step)
        self.log.record("grad_norm", values[0])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema:
            self.ema.update(self.detector, self.step)

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def finish(self) -> None:
        """The stage after gradient descent, for a detector that has one; each process does it, with all images."""
        if self.evaluated.finish_training is None:
            return
        images = evaluation_loader(
            self.data.train,
            self.detector,
            batch_size=self.settings.eval.batch_size,
            workers=self.settings.loader.workers,
            proposals=self.train_proposals,
            with_targets=True,
            divided=False,
        )
        summary = self.evaluated.finish_training(self.log.passes(images, "finishing"))
        self.log.message(f"finished: {summary}")
        distributed.broadcast(self.evaluated)
        self.finished = True
        self.save()

    def validate(self) -> Evaluation | None:
        """Measures the detector, if there is something to measure it on, and keeps it as the best one if it is."""
        if self.validation is None:
            return None
        evaluation = self.validation.measure(self.evaluated, self.device)
        protocol = self.settings.eval.protocol
        result = evaluation.results[protocol]
        score = f"{result.score:.4f}" if self.validation.has_objects else "unknown, there is no object to measure"
        self.log.message(f"epoch {self.epoch}/{self.settings.train.epochs}: {protocol} {result.headline} {score}")
        if self.stopping.is_best(result.score) and distributed.rank() == 0:
            progress = {"epoch": self.epoch, "step": self.step, "score": result.score}
            save_checkpoint(self.folder / BEST, {**detector_state(self.settings, self.evaluated), **progress})
        self.log.validation(self.step, self.epoch, result.metrics)  # last: a run without this line measures again
        return evaluation

    def save(self) -> None:
        """Writes the last checkpoint, from which the run goes on and its detector is rebuilt."""
        self.random = distributed.gather(random_state(self.device)) if self.batches else []
        if distributed.rank() > 0:
            return
        training = {
            "trained": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "batches": self.batches,
            "random": self.random,
            "step": self.step,
            "images_seen": self.images_seen,
            "minutes": self.stopping.minutes,
            "finished": self.finished,
        }
        save_checkpoint(self.folder / LAST, {**detector_state(self.settings, self.evaluated), **training})

"""The training loop, in sight."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from detkit.config import UserError
from detkit.data.build import build_dataset, build_loader
from detkit.data.transforms import Augment
from detkit.detectors.build import build_detector
from detkit.detectors.detector import Detector
from detkit.engine import distributed
from detkit.engine.amp import autocast
from detkit.engine.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from detkit.engine.ema import EMA
from detkit.engine.evaluate import build_evaluator, evaluate, evaluation_loader
from detkit.engine.log import RunLog
from detkit.engine.optim import build_optimizer, set_lr
from detkit.engine.proposals import proposals_for
from detkit.engine.run import BEST, LAST, RunConfig, detector_state, load_weights, save_config
from detkit.engine.schedule import lr_factor
from detkit.evaluation.evaluator import Evaluation
from detkit.evaluation.report import format_table
from detkit.structures import Batch


class TrainingError(UserError):
    """Training cannot go on."""


def train(config: RunConfig, folder: Path, *, resume: bool = False, stop_after: int | None = None) -> Evaluation | None:
    """Trains in `folder`, or goes on there, and returns the last evaluation.

    `stop_after` ends the run after that epoch as an interruption would. Resumed, it gives what an uninterrupted run
    gives, to the bit on the CPU: every random number is a function of the seed, the epoch and the place.
    """
    with distributed.process_group(config.device) as device:
        return _train(config, folder, device, resume, stop_after)


def _train(
    config: RunConfig, folder: Path, device: torch.device, resume: bool, stop_after: int | None
) -> Evaluation | None:
    settings, rank, world_size = config.train, distributed.rank(), distributed.world_size()
    if settings.amp == "fp16" and device.type != "cuda":
        raise UserError("train.amp: fp16 needs a CUDA device; use bf16 or off on the CPU")
    if settings.sync_bn and device.type != "cuda":
        raise UserError("train.sync_bn: needs CUDA devices")
    with distributed.first_process_first():
        train_set, val_set = build_dataset(config.data, "train"), build_dataset(config.data, "val")
    torch.manual_seed(settings.seed)
    detector = build_detector(config.model, train_set.class_names).to(device)
    if settings.sync_bn:
        detector = nn.SyncBatchNorm.convert_sync_batchnorm(detector)  # type: ignore[no-untyped-call]
    model = DistributedDataParallel(detector) if world_size > 1 else detector
    optimizer = build_optimizer(settings.optimizer, detector)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
    ema = EMA(settings.ema, detector) if settings.ema else None
    proposals = proposals_for(detector, train_set, config.data.root, workers=config.loader.workers)
    loader = build_loader(
        train_set,
        place=detector.input.place,
        stride=detector.input.stride,
        batch_size=settings.batch_size,
        augment=Augment(config.augment),
        seed=settings.seed,
        workers=config.loader.workers,
        aspect_grouping=config.loader.aspect_grouping,
        shuffle=True,
        rank=rank,
        world_size=world_size,
        with_targets=True,
        draw_every=detector.input.resize.draw_every,
        proposals=proposals,
    )
    val_loader = evaluation_loader(
        val_set,
        detector,
        batch_size=config.eval.batch_size,
        workers=config.loader.workers,
        proposals=proposals_for(detector, val_set, config.data.root, workers=config.loader.workers),
    )
    evaluator = build_evaluator(val_set, config.eval.coco_backend)
    start, step, best, finished = 0, 0, -math.inf, False
    if resume:
        start, step, best, finished = resume_state(folder, detector, optimizer, scaler, ema)
    if rank == 0:
        save_config(folder, config)
    log = RunLog(folder, resume_step=step, enabled=rank == 0)
    log.message(
        f"{train_set.summary}\n{val_set.summary}\n{describe(detector, device, world_size)}\nwriting to {folder}"
    )

    batches = len(loader)
    steps_per_epoch = math.ceil(batches / settings.accumulate)
    evaluation = None
    kept = ema.detector if ema else detector

    def save_last(epochs: int, finished: bool) -> None:
        if rank == 0:
            progress = {"trained": detector.state_dict(), "optimizer": optimizer.state_dict()}
            counters = {"scaler": scaler.state_dict(), "epoch": epochs, "step": step, "finished": finished}
            save_checkpoint(folder / LAST, {**detector_state(config, kept), **progress, **counters})

    def finish() -> None:
        """The stage after gradient descent, for a detector that has one; each process does it, with all images."""
        if kept.finish_training is None:
            return
        everything = evaluation_loader(
            train_set,
            detector,
            batch_size=config.eval.batch_size,
            workers=config.loader.workers,
            proposals=proposals,
            with_targets=True,
            divided=False,
        )
        made = kept.finish_training(log.passes(everything, "finishing"))
        log.message(f"finished: {made}")
        distributed.broadcast(kept)
        save_last(settings.epochs, finished=True)

    def validate(epoch: int) -> Evaluation:
        nonlocal best
        evaluation = evaluate(
            kept,
            val_loader,
            evaluator,
            [config.eval.protocol],
            device=device,
            amp=config.eval.amp,
            progress=rank == 0,
        )
        result = evaluation.results[config.eval.protocol]
        log.validation(step, epoch, result.metrics)
        log.message(f"epoch {epoch}/{settings.epochs}: {config.eval.protocol} {result.headline} {result.score:.4f}")
        if rank == 0 and result.score > best:
            best = result.score
            counters = {"epoch": epoch, "step": step, "score": best}
            save_checkpoint(folder / BEST, {**detector_state(config, kept), **counters})
        return evaluation

    if start >= settings.epochs and finished:
        log.message(f"all {start} epochs are done; raise train.epochs to go on")
    elif start >= settings.epochs:
        finish()
        evaluation = validate(start)
    for epoch in range(start, min(settings.epochs, stop_after or settings.epochs)):
        torch.manual_seed(epoch_seed(settings.seed, epoch, rank))
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        detector.train()
        title = f"epoch {epoch + 1}/{settings.epochs}"
        progress = log.progress(loader, done=epoch * batches, total=settings.epochs * batches, title=title)
        for index, batch in enumerate(progress):
            group_start = index // settings.accumulate * settings.accumulate
            group_size = min(settings.accumulate, batches - group_start)
            lr = lr_factor(settings.schedule, settings.warmup, step, steps_per_epoch, settings.epochs)
            set_lr(optimizer, lr)

            batch = batch.to(device)
            with autocast(device, settings.amp):
                outputs = model(batch)
            losses = detector.criterion(outputs, batch.targets)
            log.losses(check_finite(losses, batch, step))
            scaler.scale(torch.stack(list(losses.values())).sum() / group_size).backward()  # type: ignore[no-untyped-call]
            if index + 1 < group_start + group_size:
                continue

            scaler.unscale_(optimizer)
            if settings.clip_norm:
                clip_grad_norm_(detector.parameters(), settings.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if ema:
                ema.update(detector, step)
            log.step(step, epoch + 1, optimizer.param_groups[0]["lr"], last=index + 1 == batches)

        done = epoch + 1 == settings.epochs
        save_last(epoch + 1, finished=done and kept.finish_training is None)
        if done:
            finish()
        if done or (epoch + 1) % settings.eval_every == 0:
            evaluation = validate(epoch + 1)
    if evaluation:
        log.message(format_table(evaluation, config.eval.protocol))
    log.close()
    return evaluation


def resume_state(
    folder: Path, detector: Detector, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, ema: EMA | None
) -> tuple[int, int, float, bool]:
    """Loads `last.pt` into the parts of a run; the epochs and steps done, the best score so far, whether it is over."""
    if not (folder / LAST).exists():
        raise CheckpointError(f"{folder}: no checkpoint yet, the run ended in its first epoch; start it anew")
    state = load_checkpoint(folder / LAST)
    if "optimizer" not in state:
        raise CheckpointError(f"{folder / LAST}: holds no training state; resume needs a checkpoint written as {LAST}")
    if state["class_names"] != list(detector.class_names):
        raise CheckpointError(
            f"{folder / LAST}: trained on the classes {', '.join(state['class_names'])}; "
            f"the data has {', '.join(detector.class_names)}"
        )
    load_weights(detector, state["trained"], folder / LAST)
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    if ema:
        load_weights(ema.detector, state["model"], folder / LAST)
    best = load_checkpoint(folder / BEST)["score"] if (folder / BEST).exists() else -math.inf
    return state["epoch"], state["step"], best, state.get("finished", True)  # older runs have no such stage


def check_finite(losses: dict[str, Tensor], batch: Batch, step: int) -> dict[str, float]:
    """The losses as numbers. Raises TrainingError with the names of the images if one is not finite."""
    values = {name: loss.item() for name, loss in losses.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise TrainingError(
            f"the loss is not finite at step {step}: "
            f"{', '.join(f'{name} {value}' for name, value in values.items())}; "
            f"images: {', '.join(str(info.image_id) for info in batch.infos)}; start again with a lower "
            f"train.optimizer.lr, a longer train.warmup or with train.clip_norm"
        )
    return values


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])


def describe(detector: Detector, device: torch.device, world_size: int) -> str:
    total = sum(parameter.numel() for parameter in detector.parameters())
    trained = sum(parameter.numel() for parameter in detector.parameters() if parameter.requires_grad)
    return (
        f"{type(detector).__name__}: {total:,} parameters, {trained:,} trained; {len(detector.class_names)} classes; "
        f"{world_size} x {device}"
    )

"""What each of torchrun's processes does in `test_group.py`: a part for each of its tests, in one launch.

CONFIG FOLDER: a YAML file, and where the runs and `result.json` go. The data have a list of two pictures, `two`.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detkit.config import load_config
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.engine import distributed
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.prediction.interrupts import Stopped
from detkit.engine.settings import RunConfig
from detkit.engine.train import Run, train_config
from detkit.nn.heads import set_head
from detkit.structures import Batch, Categories
from tests.detectors.batches import ROOT, cheap_config, enliven, images_of, make_batch


def gradient(run: Run) -> float:
    """The norm of the gradient of this process."""
    parts = [parameter.grad.flatten() for parameter in run.detector.parameters() if parameter.grad is not None]
    return torch.cat(parts).norm().item()


def gradients_of_each_batch(config: RunConfig, folder: Path) -> list[list[float]]:
    """The norm of the gradient of each process, after each batch of a run."""
    norms: list[list[float]] = []
    backward = Run.backward

    def watched(run: Run, *arguments: Any) -> Any:
        losses = backward(run, *arguments)
        norms.append(distributed.gather(gradient(run)))
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "backward", watched)
        train_config(config, folder)
    return norms


def stopped_in_one_process(config: RunConfig, folder: Path) -> list[int]:
    """The steps that are done in each process after the last one gets SIGTERM in its second batch; then goes on."""
    steps: list[int] = []
    backward = Run.backward

    def interrupted(run: Run, *arguments: Any) -> Any:
        if distributed.rank() == distributed.world_size() - 1 and run.images_seen:
            signal.raise_signal(signal.SIGTERM)
        losses = backward(run, *arguments)
        steps.append(run.step)
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "backward", interrupted)
        with pytest.raises(Stopped):
            train_config(config, folder)
    train_config(config, folder, resume=True)
    return distributed.gather(len(steps))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(folder / "last.pt")["trained"]
    return state


OBJECTS = (3, 0, 2)  # of the picture of each process


def difference_from_alone(name: str) -> float:
    """The largest difference of a gradient of the group, relative to that tensor's largest, from the mean of the
    gradients of each picture alone. Twice, as a parameter that took no part fails in the step after."""
    torch.manual_seed(0)
    config = cheap_config(ROOT / "configs" / name)
    detector = build_detector(config.model, Categories.of_names([str(number) for number in range(6)]))
    enliven(detector)
    batch, rank = make_batch(detector, OBJECTS), distributed.rank()
    model = DistributedDataParallel(detector)
    for _ in range(2):
        together = _gradients(detector, model, images_of(batch, rank), seed=rank)
    with pytest.MonkeyPatch.context() as patch:
        mean = sum(OBJECTS) / len(OBJECTS)
        patch.setattr(set_head, "mean_over_processes", lambda count: torch.full_like(count, mean))
        apart = [_gradients(detector, detector, images_of(batch, index), seed=index) for index in range(len(OBJECTS))]
    alone = {name: torch.stack([gradients[name] for gradients in apart]).mean(dim=0) for name in together}
    return max(((together[key] - alone[key]).abs().max() / alone[key].abs().max()).item() for key in together)


def _gradients(detector: AnyDetector, model: nn.Module, batch: Batch, seed: int) -> dict[str, torch.Tensor]:
    """Of the losses; the seed is that of what the detector draws, as noised queries and samples of proposals."""
    detector.train().zero_grad()
    torch.manual_seed(seed)
    losses = detector.criterion(model(batch), batch.targets)
    torch.stack(list(losses.values())).sum().backward()
    return {name: it.grad.clone() for name, it in detector.named_parameters() if it.grad is not None}


def main(path: Path, folder: Path) -> None:
    config = load_config(path, RunConfig)
    two_pictures = config.data.model_copy(update={"train": ("2007_two",), "val": ("2007_two",)})
    few = config.model_copy(update={"data": two_pictures})
    with distributed.process_group("cpu"):
        result: dict[str, Any] = {"gradients": gradients_of_each_batch(config, folder / "straight")}
        result["stopped"] = stopped_in_one_process(config, folder / "stopped")
        evaluation = train_config(few, folder / "few")
        result["images"] = evaluation.num_images if evaluation else None
        distributed.gather(None)
        one, two = weights(folder / "straight"), weights(folder / "stopped")
        result["difference"] = max((one[name] - two[name]).abs().max().item() for name in one)
        result["alone"] = {name: difference_from_alone(name) for name in ("mask_rcnn.yaml", "yolox.yaml", "dino.yaml")}
        if distributed.rank() == 0:
            (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

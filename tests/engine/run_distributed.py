"""What each of torchrun's processes does in `test_distributed.py`, and what one process does alone.

Trains, writes the mean loss of the first batch, and evaluates: CONFIG FOLDER RESULT.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from detkit.config import load_config
from detkit.data.build import build_dataset
from detkit.data.loader import build_loader
from detkit.detectors.build import build_detector
from detkit.engine import distributed
from detkit.engine.evaluate import evaluate_source
from detkit.engine.settings import RunConfig
from detkit.engine.train import train_config
from detkit.evaluation.report import to_json


def first_loss(config: RunConfig) -> dict[str, float]:
    """Of the first batch of all processes together, through DDP where there is more than one."""
    with distributed.process_group(config.device):
        dataset = build_dataset(config.data, "train")
        torch.manual_seed(config.train.seed)
        detector = build_detector(config.model, dataset.categories).train()
        model = DistributedDataParallel(detector) if distributed.world_size() > 1 else detector
        loader = build_loader(
            dataset,
            place=detector.input.place,
            stride=detector.input.stride,
            batch_size=config.train.batch_size,
            augment=None,
            seed=config.train.seed,
            workers=0,
            aspect_grouping=True,
            shuffle=True,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            with_targets=True,
        )
        batch = next(iter(loader))
        losses = detector.criterion(model(batch), batch.targets)
        parts = distributed.gather({name: loss.item() for name, loss in losses.items()})
        return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def main(config_path: Path, folder: Path, result_path: Path) -> None:
    config = load_config(config_path, RunConfig)
    with distributed.process_group(config.device):
        losses = first_loss(config)
        train_config(config, folder)
        evaluation, store = evaluate_source(folder, ["voc07", "coco"])
    if int(os.environ.get("RANK", 0)) > 0:
        return
    result_path.write_text(
        json.dumps({"losses": losses, "evaluation": to_json(evaluation), "images": len(store.detections)})
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

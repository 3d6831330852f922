"""A training of seconds, to be disturbed: a small YOLOX on six pictures, two epochs of three batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from detkit import cli
from detkit.engine.checkpoint import load_checkpoint
from tests.engine.settings import differences, write_pictures

MODEL: dict[str, Any] = {
    "name": "yolox",
    "backbone": {"name": "csp_darknet", "width": 0.0625},
    "head": {"channels": 8},
    "input": {"resize": {"name": "letterbox", "size": 64, "centred": False, "fill": 114}},
}
TRAIN: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 2,
    "optimizer": {"name": "sgd", "lr": 0.01},
    "ema": {"decay": 0.9},
}


def write_config(folder: Path, *, pictures: int = 6, **train: Any) -> Path:
    """`folder/small.yaml`, with its data in `folder/data`."""
    config = {
        "model": MODEL,
        "data": write_pictures(folder / "data", pictures),
        "train": {**TRAIN, **train},
        "loader": {"workers": 0},
        "eval": {"protocol": "voc07"},
        "device": "cpu",
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def train_again(config: Path, folder: Path) -> int:
    """Goes on with the run in `folder`, or starts it if nothing of it was written yet; the status."""
    begun = (folder / "config.yaml").exists()
    return cli.train(["--resume", str(folder)] if begun else [str(config), "--output", str(folder)])


def check_same(folder: Path, undisturbed: Path) -> None:
    """Both checkpoints are equal to the bit, and every step and epoch stands once in the records."""
    for name in ("last.pt", "best.pt"):
        one, two = load_checkpoint(folder / name), load_checkpoint(undisturbed / name)
        for state in (one, two):
            state["config"] = {**yaml.safe_load(state["config"]), "loader": None}
        assert differences(one, two) == [], name
    assert (folder / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()

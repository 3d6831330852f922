"""Runs that take seconds, for the tests of the tools."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from detkit import cli

TINY: dict[str, Any] = {
    "model": {
        "name": "faster_rcnn",
        "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0},
        "neck": {"name": "fpn", "out_channels": 16},
        "rpn": {
            "anchors": {"sizes": [[16], [32], [64], [128], [256]]},
            "post_nms_top_k_train": 50,
            "post_nms_top_k_test": 50,
        },
        "roi": {"batch_size_per_image": 16, "hidden": [16, 16]},
        "input": {"resize": {"name": "short_side", "size": 64, "max_size": 96}},
    },
    "train": {"epochs": 1, "batch_size": 3, "optimizer": {"name": "sgd", "lr": 0.01}, "warmup": {"iterations": 2}},
    "loader": {"workers": 0},
    "device": "cpu",
}
FAST: dict[str, Any] = {  # a model that is given its proposals
    "name": "fast_rcnn",
    "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0, "strides": [16]},
    "roi": {"hidden": [16], "dropout": 0.0, "batch_size_per_image": 16, "selection": {"score_threshold": 0.01}},
    "proposals": {"name": "selective_search", "min_side": 8, "max_boxes": 60},
    "input": {"resize": {"name": "short_side", "size": 64, "max_size": 96}},
}


def write_config(path: Path, data: dict[str, Any] | None = None, **sections: Any) -> Path:
    """The tiny configuration with the built-in shapes beside `path`, or with `data`; `sections` replace whole ones."""
    config = copy.deepcopy(TINY)
    config["data"] = data or {"name": "shapes", "root": str(path.parent / "shapes"), "num_train": 6, "num_val": 3}
    path.write_text(yaml.safe_dump({**config, **sections}), encoding="utf-8")
    return path


def train_tiny(folder: Path, **sections: Any) -> Path:
    """The folder of a finished run, `folder/run`; its configuration is `folder/tiny.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = write_config(folder / "tiny.yaml", **sections)
    assert cli.train([str(config), "--output", str(folder / "run")]) == 0
    return folder / "run"

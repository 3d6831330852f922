"""Small runs for the tests of the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detkit.config import override, parse_config
from detkit.engine.settings import RunConfig
from tests.data.writers import voc_object

ROOT = Path(__file__).resolve().parents[2]

MODEL: dict[str, Any] = {
    "name": "faster_rcnn",
    "backbone": {"name": "resnet18", "norm": "bn", "frozen_stages": 0, "strides": [16, 32]},
    "neck": {"name": "fpn", "out_channels": 16, "extra_level": "none"},
    "rpn": {
        "anchors": {"sizes": [[16, 32], [48, 64]]},
        "batch_size_per_image": 32,
        "post_nms_top_k_train": 50,
        "post_nms_top_k_test": 30,
    },
    "roi": {"batch_size_per_image": 16, "hidden": [32], "selection": {"score_threshold": 0.01}},
    "input": {"resize": {"name": "short_side", "size": 64, "max_size": 96}},
}


def make_config(data: dict[str, Any], *changes: str) -> RunConfig:
    """A ResNet-18-FPN of 64 px on `data`, two epochs of batches of two."""
    train = {"epochs": 2, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.01}}
    tree = {"model": MODEL, "data": data, "train": train, "loader": {"workers": 0}, "device": "cpu"}
    return parse_config(override(tree, changes), RunConfig)


# What makes a loss the same whether its images come together or apart: nothing depends on the other images (frozen
# batch norm), nothing is drawn (every anchor and proposal is sampled, none lies between the thresholds), and every
# image has as many samples as any other (no proposal is suppressed, and the first ten of each stay).
SEPARABLE = (
    "model.backbone.norm=frozen_bn",
    "model.rpn.fg_threshold=0.5",
    "model.rpn.bg_threshold=0.5",
    "model.rpn.batch_size_per_image=100000",
    "model.rpn.positive_fraction=1.0",
    "model.rpn.nms_threshold=1.0",
    "model.rpn.min_size=0.0",
    "model.rpn.post_nms_top_k_train=10",
    "model.roi.batch_size_per_image=100000",
    "model.roi.positive_fraction=1.0",
    "augment=[]",
    "train.optimizer.lr=0.001",  # steps so small that no rounding flips a ReLU on the way
)


def write_pictures(root: Path, count: int) -> dict[str, Any]:
    """A devkit of pictures of 64 x 96 with two rectangles each; the `data` of a configuration."""
    folder = root / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    stems = [f"{index:03d}" for index in range(count)]
    for index, stem in enumerate(stems):
        rng = np.random.default_rng(index)
        image = cv2.resize(rng.integers(0, 256, (4, 6, 3)).astype(np.uint8), (96, 64))
        objects = []
        for name, left in (("cat", 0), ("dog", 48)):
            x, y = left + int(rng.integers(1, 16)), int(rng.integers(1, 30))
            width, height = rng.integers(16, 32, 2).tolist()
            image[y : y + height, x : x + width] = (0, 0, 255) if name == "cat" else (255, 0, 0)
            objects.append(voc_object(name, (x + 1, y + 1, x + width, y + height)))
        cv2.imwrite(str(folder / "JPEGImages" / f"{stem}.jpg"), image)
        size = "<size><width>96</width><height>64</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{stem}.jpg</filename>{size}{''.join(objects)}</annotation>"
        (folder / "Annotations" / f"{stem}.xml").write_text(xml)
    for split in ("train", "val"):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    lists = {"train": ["2007_train"], "val": ["2007_val"], "classes": ["cat", "dog"]}
    return {"name": "voc", "root": str(root), **lists}


def torchrun(*script: object) -> str:
    """What two processes say, run from the root of the repository; both must succeed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, *map(str, script)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read_metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def differences(one: Any, two: Any, path: str = "") -> Sequence[str]:
    """The paths at which two nested states of tensors and plain values are not equal to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [path]
    if isinstance(one, dict) and isinstance(two, dict):
        keys = {*one, *two}
        return [p for key in keys for p in differences(one.get(key), two.get(key), f"{path}.{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [p for i, (a, b) in enumerate(zip(one, two, strict=True)) for p in differences(a, b, f"{path}.{i}")]
    return [] if type(one) is type(two) and one == two else [path]

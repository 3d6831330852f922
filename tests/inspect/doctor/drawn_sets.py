"""Tiny data sets in COCO's form whose flaws are known, and configurations on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detkit.config import override, parse_config
from detkit.engine.settings import RunConfig
from detkit.inspect.doctor.diagnose import diagnose
from detkit.inspect.doctor.findings import Finding
from tests.engine.settings import MODEL

NAMES = ("cat", "dog")
CAT, DOG = 1, 2
GOOD = ((CAT, 10, 10, 30, 40), (DOG, 60, 20, 40, 30))


@dataclass
class Drawn:
    """A picture of noise, no two alike, with boxes (category, x, y, width, height) in COCO's form.

    size    (w, h) as annotated; the file has `actual`
    pixels  instead of noise
    save    how the file is written
    """

    boxes: Sequence[tuple[float, ...]] = GOOD
    size: tuple[int, int] = (120, 80)
    actual: tuple[int, int] | None = None
    pixels: np.ndarray | None = None
    mode: str = "RGB"
    save: dict[str, Any] = field(default_factory=dict)
    content: bytes | None = None


def noise(seed: int, size: tuple[int, int] = (120, 80)) -> np.ndarray:
    """uint8 `[h, w, 3]`: blocks of 10 px of any colour."""
    w, h = size
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-h // 10), -(-w // 10), 3), np.uint8)
    return blocks.repeat(10, axis=0).repeat(10, axis=1)[:h, :w]


def write_set(
    folder: Path, train: Sequence[Drawn], val: Sequence[Drawn], names: Sequence[str] = NAMES
) -> dict[str, Any]:
    """Writes both splits and returns the section `data` of a configuration."""
    seed = 0
    for split, pictures in (("train", train), ("val", val)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (folder / split).mkdir(parents=True)
        for number, picture in enumerate(pictures, 1):
            seed += 1
            name = f"{split}{number}.png"
            pixels = noise(seed, picture.actual or picture.size) if picture.pixels is None else picture.pixels
            if picture.content is not None:
                (folder / split / name).write_bytes(picture.content)
            else:
                image = Image.fromarray(pixels)
                image = image if picture.mode == "as it is" else image.convert(picture.mode)
                image.save(folder / split / name, **{"format": "PNG", **picture.save})
            w, h = picture.size
            images.append({"id": number, "file_name": name, "width": w, "height": h})
            for category, *box in picture.boxes:
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box}
                annotations.append({**row, "area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return {
        "name": "coco",
        "root": str(folder),
        "train_images": "train",
        "train_annotations": "train.json",
        "val_images": "val",
        "val_annotations": "val.json",
    }


def config_of(data: dict[str, Any], *changes: str, model: dict[str, Any] | None = None) -> RunConfig:
    """A tiny Faster R-CNN whose input is as large as the pictures, or `model`, on `data`."""
    size = "model.input.resize={name: short_side, size: 80, max_size: 120}"
    tree = {
        "model": model or MODEL,
        "data": data,
        "train": {"epochs": 2, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.01}},
        "loader": {"workers": 0},
        "device": "cpu",
    }
    return parse_config(override(tree, [*([] if model else [size]), *changes]), RunConfig)


# Twelve pictures a split, so that no class is rare, all different, and all of whose boxes are sound.
CLEAN = [Drawn() for _ in range(12)]


def findings_of(
    folder: Path, train: Sequence[Drawn] = (), val: Sequence[Drawn] = (), *changes: str, **options: Any
) -> dict[str, Finding]:
    """Of the clean set with some more pictures, by code."""
    data = write_set(folder, [*CLEAN, *train], [*CLEAN, *val])
    return {finding.code: finding for finding in diagnose(config_of(data, *changes, **options)).findings}

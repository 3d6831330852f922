"""Small sets of videos on disk for the tests of the readers: every frame is grey, of a value that tells its number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.clip_dataset import ClipDataset
from detkit.data.clips import ClipsConfig, read_clips
from tests.data.writers import write_picture

SIZE = (40, 60)  # (h, w)


def value_of(number: int) -> int:
    return 20 + 10 * number


def numbers_in(frames: np.ndarray) -> list[int]:
    """The numbers of frames `[T, H, W, 3]`, by their grey."""
    return [round((int(frame[0, 0, 0]) - 20) / 10) for frame in frames]


def write_frames(folder: Path, count: int, pattern: str = "{:06d}.png", first: int = 0) -> None:
    for number in range(count):
        write_picture(folder / pattern.format(number + first), SIZE, value_of(number))


def track(class_name: Any, frames: Sequence[Any], boxes: Sequence[Sequence[Any]], **more: Any) -> dict[str, Any]:
    return {"class": class_name, "frames": list(frames), "boxes": [list(box) for box in boxes], **more}


def moved(box: Sequence[float], count: int, step: float = 1.0) -> list[list[float]]:
    """The box in `count` frames, `step` px to the right in each."""
    x1, y1, x2, y2 = box
    return [[x1 + step * number, y1, x2 + step * number, y2] for number in range(count)]


def write_clips(root: Path, videos: Sequence[dict[str, Any]], split: str = "train", **more: Any) -> ClipsConfig:
    """The JSON file of a split, with the classes run and jump; the frames have to be there."""
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{split}.json").write_text(json.dumps({"classes": ["run", "jump"], "videos": list(videos), **more}))
    return ClipsConfig(root=str(root))


def read(
    root: Path, videos: Sequence[dict[str, Any]], more: dict[str, Any] | None = None, **config: Any
) -> ClipDataset:
    """The training split of these videos."""
    write_clips(root, videos, **(more or {}))
    return read_clips(ClipsConfig(root=str(root), **config), "train")

"""The built-in videos: moving shapes whose classes are motions, drawn from a seed and written as `clips.py` reads them.

root/frames/{train,val}_00000/000000.jpg    a picture of each frame
root/{train,val}.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field
from tqdm import tqdm

from detkit.config import Config, PathText
from detkit.data.checks import Check, check_images
from detkit.data.clip_dataset import ClipDataset
from detkit.data.clips import ClipsConfig, read_clips
from detkit.data.drawn_set import ensure_drawn
from detkit.data.moving_shapes_drawing import CLASS_NAMES, draw_clip

VERSION = 1  # of the files: raise it when they change, so that old folders are drawn again
QUALITY = 90  # of the JPEGs


class MovingShapesConfig(Config):
    """Videos of 16 to 24 frames, 160 x 120, of one to three shapes that go left, right, up or down, grow, shrink, or
    spin either way. A single frame does not tell which.

    root         folder to which they are written, once
    num_train    videos to train on
    num_val      videos to evaluate on
    train_every  as in `ClipsConfig`
    seed         another seed draws another set
    """

    has_videos: ClassVar[bool] = True

    name: Literal["moving_shapes"] = "moving_shapes"
    root: PathText = "datasets/moving_shapes"
    num_train: int = Field(600, ge=1)
    num_val: int = Field(60, ge=1)
    train_every: int = Field(4, ge=1)
    seed: int = Field(0, ge=0)


def read_moving_shapes(
    config: MovingShapesConfig, split: Literal["train", "val"], check: Check = check_images
) -> ClipDataset:
    """Draws the set if there is none, or one of other settings, and reads `split`."""
    drawing = {"num_train": config.num_train, "num_val": config.num_val, "seed": config.seed}
    settings = {"generator": "detkit.data.moving_shapes", "version": VERSION, **drawing}
    ensure_drawn(Path(config.root), settings, partial(_write, config=config))
    return read_clips(ClipsConfig(root=config.root, train_every=config.train_every), split, check)


def _write(root: Path, config: MovingShapesConfig) -> None:
    for number, (split, count) in enumerate((("train", config.num_train), ("val", config.num_val))):
        names = [f"{split}_{index:05d}" for index in range(count)]
        write = partial(_write_video, root, seed=(config.seed, number))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            written = pool.map(write, range(count), names)
            videos = list(tqdm(written, f"drawing {split}", count, delay=2, leave=False))
        (root / f"{split}.json").write_text(json.dumps({"classes": list(CLASS_NAMES), "videos": videos}))


def _write_video(root: Path, index: int, name: str, seed: tuple[int, int]) -> Mapping[str, Any]:
    """Each has its own generator, so neither order nor number matters. Returns the video's part of the JSON file."""
    clip = draw_clip(np.random.default_rng([*seed, index]))
    folder = root / "frames" / name
    folder.mkdir(parents=True)
    for number, frame in enumerate(clip.frames):
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
        (folder / f"{number:06d}.jpg").write_bytes(content.tobytes())
    tracks = [
        {
            "id": item.track_id,
            "class": CLASS_NAMES[item.label],
            "frames": list(range(len(item.boxes))),
            "boxes": item.boxes.tolist(),
        }
        for item in clip.objects
    ]
    return {"name": name, "frames": f"frames/{name}", "tracks": tracks}

"""The tubes of UCF101-24, JHMDB and UCF Sports, in the files that came with the ACT detector (arXiv 1705.01861).

root/UCF101v2-GT.pkl       a pickle, which is read as data: none of its code is run
root/Frames/VIDEO/00001.jpg    frames, counted from 1; the folder may be `rgb-images` too, the suffix any other

The pickle is a dict:
labels         names of the classes
train_videos   for each split the names of its videos; likewise test_videos
nframes        of each video
resolution     (h, w) of each video
gttubes        {video: {label: [tube, ...]}}; a tube is float `[F, 5]`: frame, counted from 1, and x1, y1, x2, y2 in
               pixels that count from 0, of which the last one is inside
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from detkit.config import PathText, UserError
from detkit.data.checks import Check, DataError, RawObject, check_images
from detkit.data.clip_dataset import ClipDataset, RawVideo
from detkit.data.clips import VideosConfig, build_clips, images_of
from detkit.data.frame_files import numbered_frames
from detkit.pickles import read_pickle
from detkit.structures import Categories

FOLDERS = ("Frames", "rgb-images")
MAX_FRAMES = 10**6  # of a video
KEYS = ("labels", "train_videos", "test_videos", "nframes", "resolution", "gttubes")


class ActionTubesConfig(VideosConfig):
    """UCF101-24, JHMDB or UCF Sports in the layout above. All frames of a video are annotated.

    root         folder to which the other paths are relative
    annotations  the pickle; null: the only file *-GT.pkl in `root`
    frames       folder with a folder of frames for each video; null: `Frames` or `rgb-images`
    split        which of the splits into training and test videos, counted from 1: JHMDB has 3, the others 1
    """

    name: Literal["action_tubes"] = "action_tubes"
    annotations: PathText | None = None
    frames: PathText | None = None
    split: int = Field(1, ge=1)


def read_action_tubes(
    config: ActionTubesConfig, split: Literal["train", "val"], check: Check = check_images
) -> ClipDataset:
    """Reads the training or the test videos. Raises DataError naming the file, the video and the fix."""
    path = _annotations(config)
    content = _read(path)
    names = [str(label) for label in content["labels"]]
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path}: labels: expected different names, found {names}")
    folder = _folder(config)
    videos = [_video(name, content, names, path, folder) for name in _videos(content, config, split, path)]
    categories = Categories(tuple(names), tuple(range(1, len(names) + 1)))
    return build_clips(videos, categories, config, split, path, check, {})


def _annotations(config: ActionTubesConfig) -> Path:
    root = Path(config.root)
    if config.annotations is not None:
        return root / config.annotations
    files = sorted(root.glob("*-GT.pkl"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{root}: expected one file *-GT.pkl, found {found}; name it in data.annotations")
    return files[0]


def _folder(config: ActionTubesConfig) -> Path:
    root = Path(config.root)
    names = FOLDERS if config.frames is None else (config.frames,)
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(f"{root}: expected a folder {' or '.join(names)} with the frames; name it in data.frames")
    return folder


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_pickle(path)
    except UserError as error:
        raise DataError(str(error)) from error
    types = {"labels": (list, tuple), "train_videos": (list, tuple), "test_videos": (list, tuple)}
    missing = [
        key for key in KEYS if not isinstance(content, dict) or not isinstance(content.get(key), types.get(key, dict))
    ]
    if missing:
        raise DataError(f"{path}: expected a dict with {', '.join(KEYS)}; {missing[0]} is not there or of another type")
    assert isinstance(content, dict)
    return content


def _videos(
    content: Mapping[str, Any], config: ActionTubesConfig, split: Literal["train", "val"], path: Path
) -> list[str]:
    splits = content["train_videos" if split == "train" else "test_videos"]
    if config.split > len(splits):
        raise DataError(f"data.split: {path} has {len(splits)} splits, found {config.split}")
    names = splits[config.split - 1]
    if not isinstance(names, list | tuple) or not names or len(set(map(str, names))) < len(names):
        raise DataError(f"{path}: split {config.split}: expected different names of videos, found {str(names)[:60]}")
    return list(map(str, names))


def _video(name: str, content: Mapping[str, Any], labels: Sequence[str], path: Path, root: Path) -> RawVideo:
    where = f"{path.name}: video {name}"
    count, size, tubes = (content[key].get(name) for key in ("nframes", "resolution", "gttubes"))
    try:
        numbers, (height, width) = range(int(count)), map(int, size)
        objects = _objects(tubes, labels)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(
            f"{where}: expected nframes, a number, resolution, (h, w), and in gttubes arrays [F, 5] by label: {error}"
        ) from error
    if not 1 <= count <= MAX_FRAMES:
        raise DataError(f"{where}: expected 1 to {MAX_FRAMES:,} in nframes, found {count}")
    frames = numbered_frames(root / name, numbers, "%05d.jpg", where)
    frames = replace(frames, names=frames.names[: len(numbers)])
    images = images_of(name, where, frames, numbers, objects)
    return RawVideo(name, frames, [replace(image, size=(height, width)) for image in images])


def _objects(tubes: Any, labels: Sequence[str]) -> dict[int, list[RawObject]]:
    """Of each frame, counted from 0. Raises TypeError, ValueError or AttributeError for what are no tubes."""
    objects: defaultdict[int, list[RawObject]] = defaultdict(list)
    tracks = [(int(label), np.asarray(tube, np.float64)) for label, parts in tubes.items() for tube in parts]
    for track, (label, tube) in enumerate(tracks):
        if tube.ndim != 2 or tube.shape[1] != 5:
            raise ValueError(f"a tube of shape {list(tube.shape)}")
        if not 0 <= label < len(labels):
            raise ValueError(f"label {label} of {len(labels)}")
        for number, x1, y1, x2, y2 in tube.tolist():
            if number < 1 or number != int(number):
                raise ValueError(f"a tube in frame {number:g}")
            box = (x1, y1, x2 + 1, y2 + 1)
            objects[int(number) - 1].append(
                RawObject(f"tube {track} ({labels[label]})", label, box, None, {"track_ids": track})
            )
    return objects

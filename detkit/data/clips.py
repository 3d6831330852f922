"""Videos with boxes in their frames, described by one JSON file a split.

{"classes": ["run", "jump"],
 "videos": [{"name": "street", "frames": "frames/street",
             "tracks": [{"class": "run", "frames": [0, 1], "boxes": [[10, 20, 50, 90], [12, 20, 52, 90]]}]}]}

frames     of a video: a folder with a picture of each frame, in the order of their names, or a list of such pictures.
           In their place `file` may name a video file, which is taken apart once (see `video_frames`)
annotated  the frames that are; without it all of them. The others are only seen beside these
tracks     objects; `frames` are those in which an object is, counted from 0, and `boxes` are xyxy in continuous pixels.
           `id` may number the tracks of a video, all or none; without it that is their place in the list
Paths are relative to `root`. Other keys are not read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, model_validator

from detkit.config import Config, ConfigError, PathText, parse_config
from detkit.data.checks import (
    MAX_LINES,
    Box,
    Check,
    DataError,
    FilesConfig,
    NoValidation,
    RawImage,
    RawObject,
    check_images,
)
from detkit.data.classes import choose_classes
from detkit.data.clip_dataset import ClipDataset, RawVideo
from detkit.data.frame_files import FrameFiles, frames_in
from detkit.data.video_frames import unpack_video
from detkit.structures import Categories
from detkit.structures.clips import frame_id

Number = Annotated[int, Field(ge=0)]
MAX_LENGTH = 300  # of a line that tells of a mistake
MISSING = "frame without a picture stepped over"


class VideosConfig(FilesConfig):
    """Settings of every data set of videos that is read from files.

    train_every  only every n-th of the annotated frames of a video is trained on, as neighbours show almost the same
    """

    has_videos: ClassVar[bool] = True

    name: str
    train_every: int = Field(1, ge=1)


class ClipsConfig(VideosConfig):
    """Videos in the format above.

    root      the folder that the paths in the files are relative to
    train     JSON file; likewise val, whose classes are those of the training file by name. null: there is no
              validation
    unpacked  folder for the frames of video files, which are JPEGs; null: `frames` in `root`
    """

    name: Literal["clips"] = "clips"
    train: PathText = "train.json"
    val: PathText | None = "val.json"
    unpacked: PathText | None = None


class _Row(Config):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=True)


class _Track(_Row):
    class_name: str = Field(alias="class")
    frames: tuple[Number, ...]
    boxes: tuple[Box, ...]
    id: int | None = None

    @model_validator(mode="after")
    def _a_box_for_each_frame(self) -> _Track:
        if len(self.boxes) != len(self.frames):
            raise ValueError(f"boxes: expected {len(self.frames)}, one for each of `frames`, found {len(self.boxes)}")
        if len(set(self.frames)) < len(self.frames):
            raise ValueError(f"frames: frame {Counter(self.frames).most_common(1)[0][0]} is there twice; expected once")
        return self


class _Video(_Row):
    name: str = Field(min_length=1)
    frames: str | tuple[str, ...] | None = None
    file: str | None = None
    annotated: tuple[Number, ...] | None = None
    tracks: tuple[_Track, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> _Video:
        if (self.frames is None) == (self.file is None):
            raise ValueError(f"video {self.name!r}: expected either `frames` or `file`")
        if len({track.id is None for track in self.tracks}) > 1:
            raise ValueError(f"video {self.name!r}: expected an `id` in all of its tracks or in none")
        return self


class _Classes(_Row):
    classes: tuple[str, ...]

    @model_validator(mode="after")
    def _classes_once(self) -> _Classes:
        _check_once("classes", self.classes)
        return self


class _File(_Classes):
    videos: tuple[_Video, ...]

    @model_validator(mode="after")
    def _names_once(self) -> _File:
        _check_once("videos", [video.name for video in self.videos])
        return self


FileT = TypeVar("FileT", bound=_Classes)


def _check_once(key: str, names: Sequence[str]) -> None:
    if not names:
        raise ValueError(f"{key}: expected at least one, found none")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{key}: {name!r} is there {count} times; expected once")


def read_clips(config: ClipsConfig, split: Literal["train", "val"], check: Check = check_images) -> ClipDataset:
    """Reads one split. Raises DataError naming the file, the video, the track and the fix."""
    path, train = split_file(config.root, config.train, config.val, split), Path(config.root, config.train)
    content = _read(path, _File)
    classes = _read(train, _Classes).classes if split == "val" and train.is_file() else content.classes
    categories = Categories(classes, tuple(range(1, len(classes) + 1)))
    notes = Counter[str]()
    videos = [_raw_video(video, classes, path, config, notes) for video in content.videos]
    return build_clips(videos, categories, config, split, path, check, notes)


def split_file(root: str, train: str, val: str | None, split: Literal["train", "val"]) -> Path:
    """The annotations of a split. Raises NoValidation if there are none to evaluate on."""
    name = train if split == "train" else val
    if name is None:
        raise NoValidation("data.val: null: there is no validation split; to have one, name its file")
    return Path(root, name)


def build_clips(
    videos: Sequence[RawVideo],
    categories: Categories,
    config: VideosConfig,
    split: Literal["train", "val"],
    path: Path,
    check: Check,
    notes: Mapping[str, int],
) -> ClipDataset:
    """The data set of videos that a file at `path` describes, with the classes that `config` chooses."""
    images = [image for video in videos for image in video.images]
    images, categories, left_out = choose_classes(images, categories, config, str(path))
    chosen = iter(images)
    videos = [replace(video, images=[next(chosen) for _ in video.images]) for video in videos]
    dataset = ClipDataset(
        videos,
        name=f"{config.name} {split} ({path.name})",
        categories=categories,
        on_bad_label=config.on_bad_label,
        decode=config.check_images,
        check=check,
        notes={**notes, **left_out},
    )
    return dataset.every(config.train_every) if split == "train" and config.train_every > 1 else dataset


def _read(path: Path, schema: type[FileT]) -> FileT:
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        others = sorted(other.name for other in path.parent.glob("*.json"))
        raise DataError(f"{path} does not exist; JSON files there: {', '.join(others) or 'none'}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a mapping with `classes` and `videos`, found {type(content).__name__}")
    try:
        return parse_config(content, schema, where=str(path))
    except ConfigError as error:
        lines = [line if len(line) <= MAX_LENGTH else f"{line[:MAX_LENGTH]}..." for line in str(error).splitlines()]
        more = [f"  and {len(lines) - MAX_LINES - 1:,} more"] if len(lines) > MAX_LINES + 1 else []
        raise DataError("\n".join([*lines[: MAX_LINES + 1], *more])) from error


def _raw_video(video: _Video, classes: Sequence[str], path: Path, config: ClipsConfig, notes: Counter[str]) -> RawVideo:
    where = f"{path.name}: video {video.name}"
    frames = _frames_of(video, where, config)
    annotated = sorted(set(range(len(frames)) if video.annotated is None else video.annotated))
    objects: defaultdict[int, list[RawObject]] = defaultdict(list)
    for place, track in enumerate(video.tracks):
        number = place if track.id is None else track.id
        label = classes.index(track.class_name) if track.class_name in classes else -1
        problem = None if label >= 0 else f"class {track.class_name!r} is not among the classes {', '.join(classes)}"
        for frame, box in zip(track.frames, track.boxes, strict=True):
            title = f"track {number} ({track.class_name})"
            objects[frame].append(RawObject(title, label, box, problem, {"track_ids": number}))
    images = images_of(video.name, where, frames, annotated, objects)
    if isinstance(video.frames, tuple):
        unseen = sorted(set(range(len(frames))) - set(annotated))
        missing = [number for number in unseen if not os.path.isfile(frames.path(number))]
        if missing and config.on_bad_label != "drop_image":
            raise DataError(f"{where}: frame {missing[0]}: the picture {frames.path(missing[0])} does not exist")
        notes[MISSING] += len(missing)
        frames = frames.without(missing)
    return RawVideo(video.name, frames, images)


def _frames_of(video: _Video, where: str, config: ClipsConfig) -> FrameFiles:
    root = Path(config.root)
    if video.file is not None:
        # Two files never share a folder, whatever videos are called in different splits.
        digest = hashlib.sha256(video.file.encode(errors="surrogatepass")).hexdigest()[:8]
        folder = Path(config.unpacked or root / "frames", f"{Path(video.file).stem}-{digest}")
        return FrameFiles.of(unpack_video(root / video.file, folder))
    if isinstance(video.frames, str):
        return frames_in(root / video.frames, where)
    if not video.frames:
        raise DataError(f"{where}: `frames` is an empty list; expected a picture of each frame")
    return FrameFiles.of([str(root / name) for name in video.frames])


def images_of(
    video: str,
    where: str,
    frames: FrameFiles,
    annotated: Sequence[int],
    objects: Mapping[int, Sequence[RawObject]],
) -> list[RawImage]:
    """The annotated frames of a video, in this order. Raises DataError for an object in a frame that the video has not,
    or that is not among the annotated ones."""
    known = set(annotated)
    for frame in sorted({*objects, *annotated}):
        if frame >= len(frames):
            raise DataError(
                f"{where}: has {len(frames)} frames, 0 to {len(frames) - 1}, and something is annotated in frame "
                f"{frame}; is a frame missing, or are they counted from 1?"
            )
        if frame not in known:
            raise DataError(f"{where}: {objects[frame][0].where} is in frame {frame}, which `annotated` does not list")
    return [
        RawImage(
            frame_id(video, frame), frames.path(frame), f"{where}, frame {frame}", None, tuple(objects.get(frame, ()))
        )
        for frame in annotated
    ]

"""Videos with boxes in their frames, described by one JSON file a split.

{"classes": ["run", "jump"],
 "videos": [{"name": "street", "frames": "frames/street",
             "tracks": [{"class": "run", "frames": [0, 1], "boxes": [[10, 20, 50, 90], [12, 20, 52, 90]]}]}]}

frames     of a video: a folder with a picture of each frame, in the order of their names, or a list of such pictures.
           In their place `file` may name a video file, which is taken apart once (see `video_frames`)
annotated  the frames that are; without it all of them. The others are only seen beside these
tracks     objects; `frames` are those in which an object is, counted from 0, and `boxes` are xyxy in continuous pixels.
           `id` may number the tracks of a video; without it that is their place in the list
Paths are relative to `root`. Other keys are not read.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from detkit.config import Config, PathText, parse_config
from detkit.data.checks import Box, Check, DataError, FilesConfig, NoValidation, RawImage, RawObject, check_images
from detkit.data.classes import choose_classes
from detkit.data.clip_dataset import MAX_FRAMES, ClipDataset, RawVideo
from detkit.data.pictures import IMAGE_SUFFIXES
from detkit.data.video_frames import unpack_video
from detkit.structures import Categories
from detkit.structures.clips import frame_id

Number = Annotated[int, Field(ge=0, lt=MAX_FRAMES)]


class ClipsConfig(FilesConfig):
    """Videos in the format above.

    root         the folder that the paths in the files are relative to
    train        JSON file; likewise val, whose classes are those of the training file by name. null: there is no
                 validation
    train_every  of the annotated frames those are trained on whose number is a multiple of this, as neighbours show
                 almost the same
    unpacked     folder for the frames of video files, which are JPEGs; null: `frames` in `root`
    """

    name: Literal["clips"] = "clips"
    train: PathText = "train.json"
    val: PathText | None = "val.json"
    train_every: int = Field(1, ge=1)
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
        return self


class _File(_Row):
    classes: tuple[str, ...] = Field(min_length=1)
    videos: tuple[_Video, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_once(self) -> _File:
        for key, names in (("classes", self.classes), ("videos", [video.name for video in self.videos])):
            name, count = Counter(names).most_common(1)[0]
            if count > 1:
                raise ValueError(f"{key}: {name!r} is there {count} times; expected once")
        return self


def read_clips(config: ClipsConfig, split: Literal["train", "val"], check: Check = check_images) -> ClipDataset:
    """Reads one split. Raises DataError naming the file, the video, the track and the fix."""
    name = config.train if split == "train" else config.val
    if name is None:
        raise NoValidation("data.val: null: there is no validation split; to have one, set it to a JSON file")
    path, train = Path(config.root, name), Path(config.root, config.train)
    content = _read(path)
    classes = content.classes
    if split == "val" and train.is_file():
        classes = _read(train).classes
    unpacked = Path(config.unpacked or Path(config.root, "frames"))
    categories = Categories(classes, tuple(range(1, len(classes) + 1)))
    videos = [_raw_video(video, classes, path, Path(config.root), unpacked) for video in content.videos]
    return build_clips(videos, categories, config, split, path, check, config.train_every)


def build_clips(
    videos: Sequence[RawVideo],
    categories: Categories,
    config: FilesConfig,
    split: Literal["train", "val"],
    path: Path,
    check: Check,
    train_every: int = 1,
    notes: Mapping[str, int] | None = None,
) -> ClipDataset:
    """The data set of videos that a file at `path` describes, with the classes that `config` chooses."""
    images = [image for video in videos for image in video.images]
    images, categories, left_out = choose_classes(images, categories, config, str(path))
    chosen = iter(images)
    videos = [RawVideo(video.name, video.frames, [next(chosen) for _ in video.images]) for video in videos]
    dataset = ClipDataset(
        videos,
        name=f"clips {split} ({path.name})",
        categories=categories,
        on_bad_label=config.on_bad_label,
        decode=config.check_images,
        check=check,
        notes={**(notes or {}), **left_out},
    )
    return dataset.every(train_every) if split == "train" and train_every > 1 else dataset


def _read(path: Path) -> _File:
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        others = sorted(other.name for other in path.parent.glob("*.json"))
        raise DataError(f"{path} does not exist; JSON files there: {', '.join(others) or 'none'}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a mapping with `classes` and `videos`, found {type(content).__name__}")
    return parse_config(content, _File, where=str(path))


def _raw_video(video: _Video, classes: Sequence[str], path: Path, root: Path, unpacked: Path) -> RawVideo:
    where = f"{path.name}: video {video.name}"
    if video.file is not None:
        frames = unpack_video(root / video.file, unpacked / video.name)
    elif isinstance(video.frames, str):
        frames = frames_in(root / video.frames, where)
    else:
        frames = [str(root / name) for name in video.frames or ()]
    annotated = range(len(frames)) if video.annotated is None else sorted(set(video.annotated))
    objects: defaultdict[int, list[RawObject]] = defaultdict(list)
    for place, track in enumerate(video.tracks):
        number = place if track.id is None else track.id
        label = classes.index(track.class_name) if track.class_name in classes else -1
        problem = None if label >= 0 else f"class {track.class_name!r} is not among the classes {', '.join(classes)}"
        for frame, box in zip(track.frames, track.boxes, strict=True):
            title = f"track {number} ({track.class_name})"
            objects[frame].append(RawObject(title, label, box, problem, {"track_ids": number}))
    return RawVideo(video.name, frames, images_of(video.name, where, frames, annotated, objects))


def images_of(
    video: str,
    where: str,
    frames: Sequence[str],
    annotated: Sequence[int],
    objects: Mapping[int, Sequence[RawObject]],
) -> list[RawImage]:
    """The annotated frames of a video. Raises DataError for an object in a frame that the video has not, or that is
    not among the annotated ones."""
    for frame in sorted({*objects, *annotated}):
        if frame >= len(frames):
            raise DataError(
                f"{where}: has {len(frames)} frames, 0 to {len(frames) - 1}, and something is annotated in frame "
                f"{frame}; is a frame missing, or are they counted from 1?"
            )
        if frame not in annotated:
            raise DataError(f"{where}: {objects[frame][0].where} is in frame {frame}, which `annotated` does not list")
    return [
        RawImage(frame_id(video, frame), frames[frame], f"{where}, frame {frame}", None, tuple(objects.get(frame, ())))
        for frame in annotated
    ]


def frames_in(folder: Path, where: str) -> list[str]:
    """The pictures in a folder, in the order of their names, numbers in them by their value."""
    try:
        names = [item.name for item in folder.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES]
    except OSError as error:
        raise DataError(f"{where}: the folder of its frames, {folder}, cannot be read: {error.strerror}") from error
    if not names:
        raise DataError(f"{where}: the folder of its frames, {folder}, has no picture")
    return [str(folder / name) for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame2 before frame10."""
    parts, digits = [], ""
    for letter in [*name, ""]:
        if letter.isdecimal() and letter.isascii():
            digits += letter
        else:
            if digits:
                parts.append((int(digits), ""))
                digits = ""
            parts.append((-1, letter))
    return parts

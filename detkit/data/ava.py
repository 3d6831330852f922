"""AVA's files: the actions of people, annotated in one frame a second of 15 minutes of each video.

Legend: boxes are shares of the picture in the files, float32 xyxy in pixels afterwards.

root/annotations/ava_train_v2.2.csv    video, second, x1, y1, x2, y2 in [0, 1], action, person; a line for each action
root/annotations/ava_train_excluded_timestamps_v2.2.csv    video, second
root/annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt    the actions: name, number
root/frames/VIDEO/VIDEO_000001.jpg     frames, 30 a second from second 900 on (SlowFast, datasets/DATASET.md)
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from detkit.config import PathText
from detkit.data.check_cache import picture_sizes
from detkit.data.checks import Box, Check, DataError, RawImage, RawObject, check_images
from detkit.data.clip_dataset import ClipDataset, RawVideo
from detkit.data.clips import VideosConfig, build_clips, split_file
from detkit.data.frame_files import FrameFiles, numbered_frames
from detkit.structures import Categories
from detkit.structures.clips import frame_id

FPS = 30  # frames a second
FIRST, LAST = 900, 1800  # seconds; that of the first frame and of the end (SlowFast, datasets/ava_helper.py)
NO_ACTION = "box without an action left out"
SEVERAL_ACTIONS = "box with several actions, an object for each"
OTHER_ACTIONS = "object of actions that the list of actions lacks left out"
REPEATED = "line repeated"
EXCLUDED = "frame of the excluded timestamps left out"

Second = tuple[str, int]  # video and second
Actions = dict[int, int]  # line of the file by action


class AVAConfig(VideosConfig):
    """AVA in the layout above. Each action of a person is an object of its own, with the same box.

    root            folder to which the other paths are relative
    frames          folder with a folder of frames for each video, named as above or otherwise with the number, counted
                    from 1, at the end
    actions         the list of actions, which are the classes; others are left out. Published are one of 80 and one of
                    the 60 that are evaluated
    train           file of boxes; likewise val. null: there is no validation
    train_excluded  file of frames that are not used; null: all are; likewise val_excluded
    """

    name: Literal["ava"] = "ava"
    frames: PathText = "frames"
    actions: PathText = "annotations/ava_action_list_v2.2_for_activitynet_2019.pbtxt"
    train: PathText = "annotations/ava_train_v2.2.csv"
    val: PathText | None = "annotations/ava_val_v2.2.csv"
    train_excluded: PathText | None = "annotations/ava_train_excluded_timestamps_v2.2.csv"
    val_excluded: PathText | None = "annotations/ava_val_excluded_timestamps_v2.2.csv"


@dataclass(eq=False)
class _Rows:
    """The lines of a file of boxes.

    boxes  of each annotated second, and of each box its actions
    notes  counts of lines that are not read
    """

    boxes: defaultdict[Second, dict[Box, Actions]] = field(default_factory=lambda: defaultdict(dict))
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, second: Second, box: Box, action: str, number: int) -> None:
        actions = self.boxes[second].setdefault(box, {})
        if not action:
            self.notes[NO_ACTION] += 1
        elif _whole(action) in actions:
            self.notes[REPEATED] += 1
        else:
            actions[_whole(action)] = number


def read_ava(config: AVAConfig, split: Literal["train", "val"], check: Check = check_images) -> ClipDataset:
    """Reads one split; its images are the annotated seconds. Raises DataError naming the file, the line and the fix."""
    path = split_file(config.root, config.train, config.val, split)
    excluded = config.train_excluded if split == "train" else config.val_excluded
    categories = read_actions(Path(config.root, config.actions))
    rows = _read_rows(path)
    for second in _read_excluded(Path(config.root, excluded)) if excluded else ():
        rows.notes[EXCLUDED] += rows.boxes.pop(second, None) is not None
    seconds: defaultdict[str, list[int]] = defaultdict(list)
    for video, number in sorted(rows.boxes):
        seconds[video].append(number)
    if not seconds:
        raise DataError(f"{path}: has no frame that is not excluded")
    frames = {video: _frames_of(video, numbers, config) for video, numbers in seconds.items()}
    images = _images(frames, seconds, rows, categories, path)
    videos = [RawVideo(video, frames[video], images[video]) for video in seconds]
    return build_clips(videos, categories, config, split, path, check, rows.notes)


def read_actions(path: Path) -> Categories:
    """The classes of a list of actions: blocks such as `item { name: "sit" id: 11 }`; the number may be `label_id`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: this list of actions cannot be read: {error}") from error
    names, ids = [], []
    for block in re.findall(r"\w+\s*\{([^{}]*)\}", text):
        name, number = re.search(r"\bname:\s*([\"'])(.*?)\1", block), re.search(r"\b(?:label_)?id:\s*(\d+)", block)
        if name is None or number is None:
            raise DataError(f"{path}: expected `name` and `id` or `label_id`, found {' '.join(block.split())!r}")
        names.append(name[2])
        ids.append(int(number[1]))
    if not names:
        raise DataError(f'{path}: expected blocks such as item {{ name: "sit" id: 11 }}, found none')
    for key, values in (("name", names), ("number", ids)):
        value, count = Counter(values).most_common(1)[0]
        if count > 1:
            raise DataError(f"{path}: the {key} {value!r} is there {count} times; expected once")
    return Categories(tuple(names), tuple(ids))


def _lines(path: Path, columns: Sequence[int]) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file with their numbers; `columns` are how many values each may have."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if row and len(row) not in columns:
                    expected = " or ".join(map(str, columns))
                    raise DataError(f"{path}:{number}: expected {expected} values, found {len(row)}")
                if row:
                    yield number, [value.strip() for value in row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: this file cannot be read: {error}") from error


def _read_rows(path: Path) -> _Rows:
    rows = _Rows()
    for number, row in _lines(path, (7, 8)):
        try:
            x1, y1, x2, y2 = map(float, row[2:6])
            rows.add(_second(row), (x1, y1, x2, y2), row[6], number)
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: expected video, second from {FIRST} to {LAST}, x1, y1, x2, y2, action, person; "
                f"found {','.join(row)}"
            ) from error
    return rows


def _read_excluded(path: Path) -> list[Second]:
    try:
        return [_second(row) for _, row in _lines(path, (2,))]
    except ValueError as error:
        raise DataError(f"{path}: expected video, second; found another value: {error}") from error


def _second(row: Sequence[str]) -> Second:
    second = _whole(row[1])
    if not FIRST <= second <= LAST or not row[0]:
        raise ValueError(f"no second of a video: {row[:2]}")
    return row[0], second


def _whole(text: str) -> int:
    """Also of 11.0, as programs write a column that has gaps."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(f"no whole number: {text}")
    return int(number)


def _frame_of(second: int) -> int:
    """Counted from 0."""
    return (second - FIRST) * FPS


def _frames_of(video: str, seconds: Sequence[int], config: AVAConfig) -> FrameFiles:
    annotated = [_frame_of(second) for second in seconds]
    expected = video.replace("%", "%%") + "_%06d.jpg"
    return numbered_frames(Path(config.root, config.frames, video), annotated, expected, f"video {video}")


def _images(
    frames: Mapping[str, FrameFiles],
    seconds: Mapping[str, Sequence[int]],
    rows: _Rows,
    categories: Categories,
    path: Path,
) -> dict[str, list[RawImage]]:
    """Those of each video. Boxes are scaled by the size of their picture; one that cannot be read has none."""
    label_of = {int(number): label for label, number in enumerate(categories.ids)}
    images = {
        video: [
            RawImage(
                frame_id(video, _frame_of(second)),
                files.path(_frame_of(second)),
                f"{path.name}: {video}, second {second}",
                None,
                _objects(rows.boxes[video, second], categories, label_of, rows.notes),
            )
            for second in seconds[video]
        ]
        for video, files in frames.items()
    }
    paths = [image.path for part in images.values() for image in part]
    sizes = dict(zip(paths, picture_sizes(paths, decode=False, name=path.name), strict=True))
    return {video: [_in_pixels(image, sizes[image.path]) for image in part] for video, part in images.items()}


def _objects(
    boxes: Mapping[Box, Actions], categories: Categories, label_of: Mapping[int, int], notes: Counter[str]
) -> list[RawObject]:
    """One for each action; the boxes are shares."""
    objects = []
    for box, actions in boxes.items():
        for action, line in actions.items():
            if action in label_of:
                label = label_of[action]
                objects.append(RawObject(f"line {line} ({categories.names[label]})", label, box))
            else:
                notes[OTHER_ACTIONS] += 1
        notes[SEVERAL_ACTIONS] += sum(action in label_of for action in actions) > 1
    return objects


def _in_pixels(image: RawImage, size: tuple[int, int] | str) -> RawImage:
    if isinstance(size, str):
        return replace(image, objects=())
    height, width = size
    return replace(image, objects=[replace(item, box=_scaled(item.box, width, height)) for item in image.objects])


def _scaled(box: Box, width: int, height: int) -> Box:
    x1, y1, x2, y2 = box
    return x1 * width, y1 * height, x2 * width, y2 * height

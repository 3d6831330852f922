"""What is written while pictures are predicted: drawings, crops, a table, the frames of videos."""

from __future__ import annotations

import csv
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from typing_extensions import override

from detkit.engine.drawing import DrawingStyle, Trails, draw
from detkit.engine.prediction.frames import Frame
from detkit.engine.prediction.media import without_password
from detkit.engine.prediction.records import as_dicts
from detkit.engine.prediction.video import VideoReader, VideoWriter
from detkit.engine.run_folder import create_folder
from detkit.files import writing
from detkit.structures import Detections

Save = Literal["drawings", "crops", "json", "csv", "coco", "yolo", "voc"]
QUALITY = 90  # of JPEG, 0 to 100
_NOT_IN_NAMES = re.compile(r'[\0-\x1f\x7f/\\:*?"<>|]')


class Saver(ABC):
    """Writes something of every frame. A medium comes whole before the next one."""

    @abstractmethod
    def write(self, frame: Frame, detections: Detections) -> Mapping[str, str]:
        """Returns what the record of the frame is to hold: paths of the files, by name."""

    def end(self) -> list[str]:
        """The present medium has no more frames; returns notes for the user."""
        return []

    def close(self) -> None:
        """Nothing more comes, perhaps in the midst of a medium."""
        self.end()


class Drawings(Saver):
    """Every picture and every video, with its detections, under the name of its medium."""

    def __init__(self, folder: Path, style: DrawingStyle) -> None:
        self.folder, self.style = folder, style
        self.video: VideoWriter | None = None
        self.trails = Trails()

    @override
    def write(self, frame: Frame, detections: Detections) -> Mapping[str, str]:
        path = self.folder / frame.medium.name
        drawing = draw(frame.image, detections, self.style, self.trails)
        if frame.seconds is None:
            write_picture(path, drawing)
        else:
            if self.video is None:
                create_folder(path.parent)
                is_video = frame.medium.kind == "video"
                self.video = VideoWriter(path, like=VideoReader(frame.medium.source) if is_video else None)
            self.video.write(drawing, frame.seconds)
        return {"drawing": str(path)}

    @override
    def end(self) -> list[str]:
        video, self.video, self.trails = self.video, None, Trails()
        return video.close() if video else []


class Crops(Saver):
    """Every detection cut out, in a folder a class."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "crops"

    @override
    def write(self, frame: Frame, detections: Detections) -> Mapping[str, str]:
        height, width = frame.image.shape[:2]
        for row, detection in enumerate(as_dicts(detections)):
            x1, y1, x2, y2 = detection["box"]
            left, top = min(int(x1), width - 1), min(int(y1), height - 1)
            crop = frame.image[top : max(top + 1, round(y2)), left : max(left + 1, round(x2))]
            name = _numbered(frame.medium.name, frame.index)
            write_picture(self.folder / _as_name(detection["class"]) / f"{name}_{row}.jpg", crop)
        return {}


class Table(Saver):
    """`detections.csv`, a row a detection."""

    COLUMNS = ("file", "frame", "seconds", "class", "score", "x1", "y1", "x2", "y2", "track")

    def __init__(self, folder: Path) -> None:
        self.path = folder / "detections.csv"
        with writing(self.path):
            self.file = self.path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self._write([self.COLUMNS])

    @override
    def write(self, frame: Frame, detections: Detections) -> Mapping[str, str]:
        start = (without_password(frame.medium.source), frame.index, frame.seconds)
        rows = ((*start, d["class"], d["score"], *d["box"], d.get("track")) for d in as_dicts(detections))
        self._write([["" if value is None else value for value in row] for row in rows])
        return {}

    def _write(self, rows: list[Any]) -> None:
        with writing(self.path):
            csv.writer(self.file).writerows(rows)
            self.file.flush()

    @override
    def close(self) -> None:
        with writing(self.path):
            self.file.close()


class Frames(Saver):
    """The frames of videos as pictures, for the data sets that are written from them; `picture` in the record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "frames"

    @override
    def write(self, frame: Frame, detections: Detections) -> Mapping[str, str]:
        if frame.index is None:
            return {}
        path = self.folder / f"{_numbered(frame.medium.name, frame.index)}.jpg"
        write_picture(path, frame.image)
        return {"picture": str(path)}


def write_picture(path: Path, image: np.ndarray) -> None:
    """Writes uint8 `[H, W, 3]` RGB as the suffix says. Raises UserError if that cannot be."""
    create_folder(path.parent)
    content = io.BytesIO()
    Image.fromarray(image).save(content, Image.registered_extensions()[path.suffix.lower()], **_options(path))
    with writing(path):
        path.write_bytes(content.getvalue())


def _options(path: Path) -> Mapping[str, int]:
    """Of PNG, whose compression would take longer than the detection, and of what loses something."""
    match path.suffix.lower():
        case ".png":
            return {"compress_level": 1}
        case ".jpg" | ".jpeg" | ".jfif" | ".webp":
            return {"quality": QUALITY}
        case _:
            return {}


def _numbered(name: str, index: int | None) -> str:
    """The name of a drawing, which no other medium has, and the number of the frame."""
    return name if index is None else f"{name}_{index:06d}"


def _as_name(text: str) -> str:
    """`text` as the name of a folder on any system."""
    name = _NOT_IN_NAMES.sub("_", text).strip(" .")
    return name or "_"

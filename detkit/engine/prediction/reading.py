"""Media as frames. What cannot be read is a `Fault` among them, and what is not read a `LeftOut`; nothing is raised."""

from __future__ import annotations

import time
from collections.abc import Iterator

import cv2

from detkit.config import UserError
from detkit.data.decoding import VideoReader
from detkit.data.pictures import count_pages, read_picture
from detkit.engine.prediction.folders import LeftOut
from detkit.engine.prediction.frames import Fault, Frame, Medium


def read_medium(medium: Medium) -> Iterator[Frame | Fault | LeftOut]:
    """The frames of a medium, and what of it is faulty or left out, in one pass of constant memory.

    It can be closed at any frame, which closes the file.
    """
    try:
        if medium.kind == "picture":
            yield from _read_picture(medium)
        elif medium.source.startswith("camera:"):
            yield from _read_camera(medium)
        else:
            yield from _read_video(medium)
    except UserError as error:
        yield Fault(medium, str(error))


def _read_picture(medium: Medium) -> Iterator[Frame | LeftOut]:
    yield Frame(medium, read_picture(medium.path))
    if (pages := count_pages(medium.path)) > 1:
        is_tiff = medium.path.suffix.lower() in (".tif", ".tiff")
        what = "pages" if is_tiff else "frames of the animation"
        yield LeftOut(medium.source, f"only the first of {pages} {what} is read")


def _read_video(medium: Medium) -> Iterator[Frame | Fault | LeftOut]:
    with VideoReader(medium.source) as video:
        if video.num_other_videos:
            yield LeftOut(video.shown, f"only one of {video.num_other_videos + 1} video tracks is read")
        for index, (image, seconds) in enumerate(video):
            yield Frame(medium, image, index, None if video.is_picture else seconds, video.fps)
        if (fault := video.fault()) is not None:
            yield Fault(medium, fault, video.num_missing)


def _read_camera(medium: Medium) -> Iterator[Frame]:
    """OpenCV knows the cameras of every system by number."""
    capture = cv2.VideoCapture(int(medium.source.removeprefix("camera:")))
    try:
        fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
        start, index = time.monotonic(), 0
        decoded, image = capture.read()
        while decoded:
            yield Frame(medium, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), index, time.monotonic() - start, fps)
            index += 1
            decoded, image = capture.read()
    finally:
        capture.release()
    if index == 0:
        raise UserError(f"{medium.source}: no picture comes from this camera; is it connected, and free?")
    raise UserError(f"{medium.source}: the camera stopped after {index} frames")

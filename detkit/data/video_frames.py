"""Video files as folders of frames, because a training reads frames in any order, for which no video is made."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from detkit.data.checks import DataError

QUALITY = 95  # of the JPEGs
DONE = "frames.txt"  # in a folder whose video is unpacked as a whole: what the video was, and the number of frames


def unpack_video(path: Path, folder: Path) -> list[str]:
    """The frames of a video file as JPEGs in `folder`, into which they are written unless they are there already.

    Raises DataError if the video cannot be decoded to its end, or if `folder` holds anything else.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"the video {path} cannot be read: {error.strerror}") from error
    stamp = f"{path.name} {status.st_size} {status.st_mtime_ns}"
    if not (folder / DONE).is_file() or (folder / DONE).read_text(encoding="utf-8").splitlines()[:1] != [stamp]:
        _unpack(path, folder, stamp)
    count = int((folder / DONE).read_text(encoding="utf-8").splitlines()[1])
    return [str(folder / _name(number)) for number in range(count)]


def _name(number: int) -> str:
    return f"{number:06d}.jpg"


def _unpack(path: Path, folder: Path, stamp: str) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / DONE).is_file():
        raise DataError(
            f"{folder} exists and does not hold the frames of {path}; nothing was changed. Set data.unpacked to "
            "another folder, or move this one away"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
            new, count = Path(aside) / "new", 0
            new.mkdir()
            for count, image in enumerate(decoded(path), start=1):
                bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
                content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
                (new / _name(count - 1)).write_bytes(content.tobytes())
            (new / DONE).write_text(f"{stamp}\n{count}\n", encoding="utf-8")
            if folder.exists():
                shutil.move(folder, Path(aside) / "old")
            new.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: the frames of {path} cannot be written: {error.strerror}") from error


def decoded(path: Path) -> Iterator[np.ndarray]:
    """uint8 `[H, W, 3]` RGB, one frame after the other. Raises DataError where the file is broken."""
    import av

    count = 0
    try:
        with av.open(f"file:{path}") as container:
            if not container.streams.video:
                raise DataError(f"the video {path} has no pictures")
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
                count += 1
    except av.FFmpegError as error:
        raise DataError(
            f"the video {path} cannot be decoded after frame {count}: {error.strerror}; replace the file"
        ) from error
    if not count:
        raise DataError(f"the video {path} has no frame that can be decoded; replace the file")

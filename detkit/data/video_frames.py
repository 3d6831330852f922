"""Video files as folders of frames, because a training reads frames in any order, for which no video is made."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from detkit.config import UserError
from detkit.data.checks import DataError

QUALITY = 95  # of the JPEGs
DONE = "frames.txt"  # in a folder whose video is unpacked as a whole: what the video was, and the number of frames


def unpack_video(path: Path, folder: Path) -> list[str]:
    """The frames of a video file as JPEGs in `folder`, into which they are written unless they are there already.

    Raises DataError if anything of the video cannot be decoded, or if `folder` holds anything else.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise DataError(f"the video {path} cannot be read: {getattr(error, 'strerror', error)}") from error
    stamp = f"{path.name} {status.st_size} {status.st_mtime_ns}"
    count = _count_unpacked(folder, stamp)
    if count is None:
        count = _unpack(path, folder, stamp)
    return [str(folder / _name(number)) for number in range(count)]


def _name(number: int) -> str:
    return f"{number:06d}.jpg"


def _count_unpacked(folder: Path, stamp: str) -> int | None:
    """How many frames of the video that `stamp` describes are in the folder; None if they are not."""
    try:
        written, count = (folder / DONE).read_text(encoding="utf-8").splitlines()
        return int(count) if written == stamp else None
    except (OSError, ValueError):
        return None


def _unpack(path: Path, folder: Path, stamp: str) -> int:
    """Writes the frames beside `folder` and renames them, so that it is never half a video. Returns their number."""
    if folder.exists() and not (folder / DONE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} exists and does not hold the frames of {path}; nothing was changed. Set data.unpacked to "
            "another folder, or move this one away"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as aside:
            new, count = Path(aside) / "new", 0
            new.mkdir()
            for count, image in enumerate(_decoded(path), start=1):
                bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
                content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
                (new / _name(count - 1)).write_bytes(content.tobytes())
            (new / DONE).write_text(f"{stamp}\n{count}\n", encoding="utf-8")
            if _count_unpacked(folder, stamp) is None:  # otherwise another process was faster
                if folder.exists():
                    shutil.move(folder, Path(aside) / "old")
                new.rename(folder)
    except OSError as error:
        if _count_unpacked(folder, stamp) is None:
            raise DataError(f"{folder}: the frames of {path} cannot be written: {error.strerror}") from error
    return count


def _decoded(path: Path) -> Iterator[np.ndarray]:
    """uint8 `[H, W, 3]` RGB, one frame after the other. Raises DataError if any of them is damaged or missing."""
    from detkit.data.decoding import VideoReader  # imports FFmpeg, which most data sets do not need

    try:
        with VideoReader(path) as video:
            for image, _ in video:
                yield image
            fault = video.fault()
    except UserError as error:
        raise DataError(str(error)) from error
    if fault is not None:
        raise DataError(
            f"{fault}, so that the numbers of its frames are not certain; replace the file, or unpack it with another "
            "program and name the folder in `frames`"
        )

"""Clips: the frames of a video that a detector sees for one of them, and the names of frames.

Legend: T frames of a clip, F frames of a video, counted from 0. A frame of a video is an image of a data set; its id is
the name of the video and its number, `street/000012`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SEPARATOR = "/"


@dataclass(frozen=True)
class Clip:
    """The frames of a clip around the one that it is of.

    frames  T
    step    frames of the video from one to the next
    before  how many of the T frames come before the one that the clip is of
    tubes   whether objects are to have their boxes in all T frames
    """

    frames: int
    step: int = 1
    before: int = 0
    tubes: bool = False

    def positions(self, position: int, length: int) -> list[int]:
        """The T frames for the one at `position` of a video of `length` frames; its first and last are repeated
        beyond its ends."""
        offsets = self.step * (np.arange(self.frames) - self.before)
        positions: list[int] = (position + offsets).clip(0, length - 1).tolist()
        return positions


def frame_id(video: str, number: int) -> str:
    return f"{video}{SEPARATOR}{number:06d}"


def split_frame_id(image_id: object) -> tuple[str, int] | None:
    """The video and the number of a frame; None: the image is no frame of a video."""
    video, separator, number = str(image_id).rpartition(SEPARATOR)
    return (video, int(number)) if separator and number.isdecimal() else None

"""What travels from the readers to the writers.

Legend: H x W pixels. Pictures are uint8 `[H, W, 3]` RGB, upright.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Medium:
    """A file or stream to detect on.

    source  the path as the user gave it or as it stands in a folder, the URL of a stream, or `camera:N`
    name    what its drawing is called, relative to the output folder, with `/` between folders
    kind    a picture may have several pages or animated frames, of which the first is read; a stream has no end
    """

    source: str
    name: str
    kind: Literal["picture", "video", "stream"]

    @property
    def path(self) -> Path:
        """Of a picture or a video."""
        return Path(self.source)


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture, or a picture of a video.

    index    from 0 in its video or stream; None: a picture
    seconds  from the start of the video or stream to the moment at which it is shown; None: a picture
    clip     uint8 `[T, H, W, 3]`: what a detector of clips sees for it; None: the picture alone
    fps      frames a second of the video or stream, on average
    """

    medium: Medium
    image: np.ndarray
    index: int | None = None
    seconds: float | None = None
    fps: float = 25.0
    clip: np.ndarray | None = None

    @property
    def seen(self) -> np.ndarray:
        """What the detector is given."""
        return self.image if self.clip is None else self.clip


@dataclass(frozen=True)
class Fault:
    """Something of a medium that could not be read.

    message     one line for the user, which names the file
    num_frames  of a video: how many frames are missing because of it, as far as that can be told
    """

    medium: Medium
    message: str
    num_frames: int = 0

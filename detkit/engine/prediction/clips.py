"""Frames of videos with those around them, for detectors that take clips.

Legend: T frames of a clip; frames are uint8 `[H, W, 3]` RGB, clips `[T, H, W, 3]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from detkit.engine.prediction.folders import LeftOut
from detkit.engine.prediction.frames import Fault, Frame, Medium
from detkit.structures import Clip

Item: TypeAlias = Frame | Fault | LeftOut | Medium


def with_clips(items: Iterator[Item], clip: Clip) -> Iterator[Item]:
    """The same items. A frame of a video has its clip, and comes as soon as the last frame of that is there; at the end
    of a video the last frame is repeated. Pictures stay without a clip.

    A medium among the items stands for its end. No more frames are held than one clip reaches over.
    """
    window: list[Frame] = []  # the frames from the first one that is still of use
    first = upcoming = 0  # places in the video of the first of `window`, and of the next frame that is given on
    after = clip.step * (clip.frames - 1 - clip.before)
    for item in items:
        if isinstance(item, Frame) and item.index is not None:
            window.append(item)
            if first + len(window) > upcoming + after:
                yield _with_clip(window, first, upcoming, clip)
                upcoming += 1
                useless = max(0, upcoming - clip.step * clip.before - first)
                window, first = window[useless:], first + useless
            continue
        if isinstance(item, Medium):
            for place in range(upcoming, first + len(window)):
                yield _with_clip(window, first, place, clip)
            window, first, upcoming = [], 0, 0
        yield item


def _with_clip(window: list[Frame], first: int, place: int, clip: Clip) -> Frame:
    places = clip.positions(place, first + len(window))
    return replace(window[place - first], clip=np.stack([window[other - first].image for other in places]))

"""Detections of a video joined over time: when it has ended, every frame is given the boxes of the tubes it is in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from detkit.engine.prediction.choice import Choice
from detkit.engine.prediction.frames import Frame, Medium
from detkit.engine.prediction.reading import read_medium
from detkit.evaluation.protocols import LinkConfig
from detkit.evaluation.tubes import Tube
from detkit.evaluation.video import tubes_of_video
from detkit.structures import Categories, Detections, Objects

OtherT = TypeVar("OtherT")


def linked(
    items: Iterator[tuple[Frame, Detections] | Medium | OtherT], link: LinkConfig, choose: Choice
) -> Iterator[tuple[Frame, Detections] | Medium | OtherT]:
    """The same items, frames of a video with the boxes of tubes, whose numbers are `track_ids` from 1.

    A medium among the items stands for its end. Then its frames are read a second time, so that none has to be held.

    choose  the tubes that the user asked for, by score and class
    """
    video: dict[int, Detections] = {}
    for item in items:
        match item:
            case (frame, detections) if frame.index is not None:
                video[frame.index] = detections
                continue
            case Medium() if video:
                yield from _with_tubes(item, video, link, choose)
                video = {}
        yield item


def _with_tubes(
    medium: Medium, video: dict[int, Detections], link: LinkConfig, choose: Choice
) -> Iterator[tuple[Frame, Detections]]:
    categories = video[min(video)].categories
    tubes = sorted(tubes_of_video(medium.name, video, link), key=lambda tube: -tube.score)
    for frame in read_medium(medium):
        if isinstance(frame, Frame) and frame.index in video:
            yield frame, choose(boxes_in_frame(tubes, frame.index, categories))


def boxes_in_frame(tubes: Sequence[Tube], frame: int, categories: Categories) -> Detections:
    """The boxes of tubes, best first, in one frame; their `track_ids` are the places of the tubes, from 1."""
    rows = [(number, tube, tube.frames == frame) for number, tube in enumerate(tubes, start=1)]
    there = [(number, tube, tube.boxes[at][0]) for number, tube, at in rows if at.any()]
    objects = Objects(
        torch.tensor(np.array([box for _, _, box in there], np.float32).reshape(-1, 4)),
        torch.tensor([tube.label for _, tube, _ in there], dtype=torch.int64),
        scores=torch.tensor([tube.score for _, tube, _ in there], dtype=torch.float32),
        track_ids=torch.tensor([number for number, _, _ in there], dtype=torch.int64),
    )
    return Detections(objects, categories)

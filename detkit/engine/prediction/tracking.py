"""The same object under one number through the frames of a video, by Roboflow's `trackers`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from detkit.config import UserError
from detkit.structures import Detections

NO_TRACK = -1
FIRST_SCORE = 0.5  # a detection that scores less continues a track of ByteTrack, and starts none
TrackerName = Literal["bytetrack", "sort"]


class Tracker:
    """Numbers the objects of one video from 1, in the order in which they are first sure of being objects.

    name  bytetrack: by overlap with where an object should be by now, first the sure detections and then the others
          (arXiv 2110.06864); sort: all at once (arXiv 1602.00763). Neither looks at the class, so that an object which
          is a car in one frame and a truck in the next remains one
    fps   frames a second: an object that is not detected for a second gets a new number
    """

    def __init__(self, name: TrackerName, fps: float) -> None:
        try:
            import trackers
        except ImportError as error:
            raise UserError(f"to track objects, {error.name} must be installed: pip install -e '.[track]'") from error
        rate = max(1.0, fps)  # the library forgets everything at once below
        self.tracker: Any = (
            trackers.SORTTracker(frame_rate=rate, track_activation_threshold=0.0)
            if name == "sort"
            else trackers.ByteTrackTracker(
                frame_rate=rate, track_activation_threshold=FIRST_SCORE, high_conf_det_threshold=FIRST_SCORE
            )
        )
        self.numbers: dict[int, int] = {}  # by the library's own, which it shares among all videos

    def update(self, detections: Detections) -> Detections:
        """The same detections of the next frame, with `track_ids`: -1 for an object that is not sure yet, in its first
        frame (bytetrack) or two (sort)."""
        import supervision

        given = supervision.Detections(
            xyxy=detections.boxes.numpy(),
            confidence=detections.scores.numpy(),
            class_id=detections.labels.numpy(),
            data={"row": np.arange(len(detections))},
        )
        tracked = self.tracker.update(given)
        track_ids = torch.full((len(detections),), NO_TRACK)
        if len(tracked):  # in any order, and not all of them
            for row, number in zip(tracked.data["row"].tolist(), tracked.tracker_id.tolist(), strict=True):
                if number >= 0:
                    track_ids[row] = self.numbers.setdefault(int(number), len(self.numbers) + 1)
        return replace(detections, objects=replace(detections.objects, track_ids=track_ids))

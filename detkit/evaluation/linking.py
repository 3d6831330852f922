"""Links the tubelets of a video, boxes of one object in K consecutive frames, into tubes, class by class.

Legend: N tubelets that start at one frame, C classes.
A detection of a single frame is a tubelet of K = 1. Everything runs on the CPU, in numpy.
Source: Kalogeiton et al., arXiv 1705.01861, and its released code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from detkit.evaluation.protocols import LinkConfig
from detkit.evaluation.tubes import Tube, tube_iou
from detkit.ops.iou import box_iou
from detkit.structures import Detections, ImageId
from detkit.structures.objects import check_array


@dataclass(frozen=True, eq=False)
class Tubelets:
    """The tubelets that start at one frame of a video.

    start   the first frame
    boxes   float32 `[N, K, 4]` xyxy, in the frames start to start + K - 1
    scores  float32 `[N, C]`; 0: the tubelet is no detection of that class
    """

    start: int
    boxes: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        check_array("Tubelets", "boxes", self.boxes, np.ndarray, "float32", (None, None, 4))
        check_array("Tubelets", "scores", self.scores, np.ndarray, "float32", (len(self.boxes), None))


def tubelets_of(start: int, detections: Detections) -> Tubelets:
    """Detections as tubelets: their boxes in the frames of a clip that starts there, or those in one frame (K = 1)."""
    scores = np.zeros((len(detections), len(detections.categories)), np.float32)
    scores[np.arange(len(detections)), detections.labels.numpy()] = detections.scores.numpy()
    return Tubelets(start, boxes_in_clip(detections).numpy(), scores)


def boxes_in_clip(detections: Detections) -> torch.Tensor:
    """float32 `[N, K, 4]` xyxy: of each detection the boxes in the frames of a clip, or that in one frame (K = 1)."""
    tubes = detections.objects.tubes
    return detections.boxes[:, None] if tubes is None else tubes


def link_tubelets(tubelets: Iterable[Tubelets], video: ImageId, config: LinkConfig | None = None) -> list[Tube]:
    """The tubes of a video, class after class, in a class best score first.

    From the first frame to the last, the best tubelets that start there remain after suppression. The tubes so far, in
    the order of their mean scores, each take the best-scored of those that overlap their end enough; the others start
    tubes. A tube ends when it was not extended for some frames. It scores the mean of its tubelets, and has in each
    frame the mean of their boxes; a frame between two tubelets that have a gap gets the boxes beside it, interpolated
    (the published tubelets are longer than any gap).
    Raises ValueError unless all tubelets have the same K and C, and each frame is there at most once.
    """
    config = config or LinkConfig()
    by_start = {each.start: each for each in _checked(tubelets, video)}
    if not by_start:
        return []
    num_frames, num_classes = _shape(next(iter(by_start.values())))
    none = np.zeros((0, num_frames, 4), np.float32), np.zeros((0, num_classes), np.float32)
    starts = range(min(by_start), max(by_start) + 1)
    frames = [by_start.get(start) or Tubelets(start, *none) for start in starts]
    return [tube for label in range(num_classes) for tube in _link_class(frames, label, video, config)]


def _checked(tubelets: Iterable[Tubelets], video: ImageId) -> list[Tubelets]:
    frames = list(tubelets)
    if len({each.start for each in frames}) < len(frames):
        raise ValueError(f"tubelets of video {video!r}: expected each first frame at most once")
    shapes = sorted({_shape(each) for each in frames})
    if len(shapes) > 1:
        raise ValueError(f"tubelets of video {video!r}: expected one number of frames and of classes, got {shapes}")
    return frames


def _shape(tubelets: Tubelets) -> tuple[int, int]:
    """(K, C)"""
    return tubelets.boxes.shape[1], tubelets.scores.shape[1]


@dataclass(eq=False)
class _Chain:
    """The tubelets of a tube: their first frames, boxes `[K, 4]` and scores."""

    starts: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def append(self, start: int, boxes: np.ndarray, score: float) -> None:
        self.starts.append(start)
        self.boxes.append(boxes)
        self.scores.append(score)

    @property
    def score(self) -> float:
        return float(np.mean(self.scores))


def _link_class(frames: Sequence[Tubelets], label: int, video: ImageId, config: LinkConfig) -> list[Tube]:
    """`frames` are consecutive."""
    growing: list[_Chain] = []
    ended: list[_Chain] = []
    for frame in frames:
        start = frame.start
        boxes, scores = _best_tubelets(frame, label, config)
        free = np.ones(len(boxes), np.bool_)
        growing.sort(key=lambda chain: -chain.score)
        for chain in growing:
            overlaps = _overlap_with_end(chain, start, boxes)
            rows = np.flatnonzero(free & (overlaps >= config.min_overlap))
            if len(rows):  # the first has the best score
                chain.append(start, boxes[rows[0]], scores[rows[0]])
                free[rows[0]] = False
        ended += [chain for chain in growing if start - chain.starts[-1] >= config.max_misses]
        growing = [chain for chain in growing if start - chain.starts[-1] < config.max_misses]
        for row in np.flatnonzero(free):
            growing.append(_Chain([start], [boxes[row]], [scores[row]]))
    tubes = [_tube_of(chain, label, video) for chain in [*ended, *growing]]
    return suppress_tubes([tube for tube in tubes if _long_and_good(tube, config)], config.tube_nms_threshold)


def _long_and_good(tube: Tube, config: LinkConfig) -> bool:
    return tube.score >= config.min_score and len(tube.frames) >= config.min_frames


def _best_tubelets(tubelets: Tubelets, label: int, config: LinkConfig) -> tuple[np.ndarray, list[float]]:
    """Boxes `[n, K, 4]` and scores of the tubelets that remain after suppression, best first."""
    scores = tubelets.scores[:, label]
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0]
    remaining: list[int] = []
    while len(order) and len(remaining) < config.per_frame:
        best, order = int(order[0]), order[1:]
        remaining.append(best)
        order = order[mean_iou(tubelets.boxes[order], tubelets.boxes[best]) <= config.nms_threshold]
    return tubelets.boxes[remaining], scores[remaining].tolist()


def mean_iou(tubelets: np.ndarray, tubelet: np.ndarray) -> np.ndarray:
    """Mean over K frames of the IoU of each of `[N, K, 4]` with `[K, 4]`: float64 `[N]`."""
    boxes1, boxes2 = (torch.from_numpy(boxes).double() for boxes in (tubelets, tubelet))
    overlaps: np.ndarray = box_iou(boxes1, boxes2.expand_as(boxes1), paired=True).mean(dim=1).numpy()
    return overlaps


def _overlap_with_end(chain: _Chain, start: int, boxes: np.ndarray) -> np.ndarray:
    """Mean IoU of tubelets `[N, K, 4]` with the last of a tube in the frames of both; without such a frame that of the
    first box of the tubelets with the last of the tube."""
    last, offset = chain.boxes[-1], start - chain.starts[-1]
    if offset < len(last):
        return mean_iou(boxes[:, : len(last) - offset], last[offset:])
    return mean_iou(boxes[:, :1], last[-1:])


def _tube_of(chain: _Chain, label: int, video: ImageId) -> Tube:
    first, last = chain.starts[0], chain.starts[-1] + len(chain.boxes[-1])
    sums, counts = np.zeros((last - first, 4)), np.zeros(last - first)
    for start, boxes in zip(chain.starts, chain.boxes, strict=True):
        window = slice(start - first, start - first + len(boxes))
        sums[window] += boxes
        counts[window] += 1
    covered = np.flatnonzero(counts)
    means = sums[covered] / counts[covered, None]
    rows = np.arange(last - first)
    boxes = np.stack([np.interp(rows, covered, column) for column in means.T], axis=1)
    return Tube(video, label, rows + first, boxes.astype(np.float32), chain.score)


def suppress_tubes(tubes: Sequence[Tube], threshold: float) -> list[Tube]:
    """Greedy suppression, best score first: a tube goes if its spatio-temporal IoU with one that stays is above it."""
    staying: list[Tube] = []
    for tube in sorted(tubes, key=lambda each: -each.score):
        if all(tube_iou(tube, other) <= threshold for other in staying):
            staying.append(tube)
    return staying

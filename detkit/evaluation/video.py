"""Evaluation over time: the detections of the frames of videos, linked into tubes, beside the annotated tubes.

Legend: K frames of a clip that a tubelet covers, N detections of one frame.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch

from detkit.evaluation.evaluator import Evaluator, ProtocolResult
from detkit.evaluation.linking import boxes_in_clip, link_tubelets, tubelets_of
from detkit.evaluation.protocols import LinkConfig
from detkit.evaluation.store import DetectionStore
from detkit.evaluation.tubes import Tube, frame_map, video_map
from detkit.ops.nms import class_aware_nms
from detkit.structures import Detections, GroundTruth, Objects
from detkit.structures.clips import split_frame_id

FRAME_NMS = 0.3  # IoU, between the boxes that tubelets have in one frame

Video = dict[int, Detections]  # of each frame by its number


class VideoEvaluator(Evaluator):
    """Video-mAP, and frame-mAP of the same detections; see `video_map` and `frame_map`.

    A detector of tubelets reports at each frame those of the clip that starts there.
    """

    def __init__(self, store: DetectionStore, link: LinkConfig | None = None) -> None:
        super().__init__(store)
        self.link = link

    def compute(self) -> ProtocolResult:
        categories, truths = self.store.categories, self.store.ground_truth
        videos: defaultdict[str, Video] = defaultdict(dict)
        for truth, detections in zip(truths, self.store.in_order(), strict=True):
            video, number = _place(truth)
            videos[video][number] = detections
        tubes = [tube for name, video in videos.items() for tube in tubes_of_video(name, video, self.link)]
        over_time = video_map(annotated_tubes(truths), tubes, categories)
        boxes = {name: boxes_of_frames(video) for name, video in videos.items()}
        frames = [boxes[video][number] for video, number in map(_place, truths)]
        by_frame = frame_map(truths, frames, categories)
        rules = f"{over_time.rules}; frames: {by_frame.rules}"
        return ProtocolResult(rules, over_time.headline, {**over_time.metrics, **by_frame.metrics}, over_time.per_class)


def tubes_of_video(name: str, video: Mapping[int, Detections], link: LinkConfig | None = None) -> list[Tube]:
    """The tubes that the detections of its frames are linked into."""
    tubelets = [tubelets_of(number, detections) for number, detections in complete(video).items()]
    end = max(video) + 1
    tubes = []
    for tube in link_tubelets(tubelets, name, link):
        inside = tube.frames < end  # a clip longer than the video goes on with its last frame
        tubes.append(Tube(name, tube.label, tube.frames[inside], tube.boxes[inside], tube.score))
    return tubes


def complete(video: Mapping[int, Detections]) -> dict[int, Detections]:
    """The detections of the clips that end within the video, as those beyond its end see its last frame repeated; of a
    video that is shorter than a clip those of its first frame."""
    last = max(video)
    whole = {number: each for number, each in video.items() if number + num_frames(each) - 1 <= last}
    return whole or {min(video): video[min(video)]}


def num_frames(detections: Detections) -> int:
    """K: 1 where they are of a single frame."""
    return boxes_in_clip(detections).shape[1]


def boxes_of_frames(video: Mapping[int, Detections]) -> dict[int, Detections]:
    """What there is in each frame: the boxes of all tubelets that cover it, without those that overlap better ones."""
    if all(num_frames(detections) == 1 for detections in video.values()):
        return dict(video)
    covering: defaultdict[int, list[Objects[torch.Tensor]]] = defaultdict(list)
    for start, detections in complete(video).items():
        objects = detections.objects
        for offset, boxes in enumerate(boxes_in_clip(detections).unbind(dim=1)):
            covering[start + offset].append(Objects(boxes, objects.labels, scores=objects.scores))
    return {number: _without_overlaps(covering[number], detections) for number, detections in video.items()}


def _without_overlaps(parts: list[Objects[torch.Tensor]], like: Detections) -> Detections:
    if not parts:
        return Detections(like.objects.take(slice(0, 0)), like.categories)
    objects = Objects.cat(parts)
    assert objects.scores is not None
    rows = class_aware_nms(objects.boxes, objects.scores, objects.labels, FRAME_NMS)
    return Detections(objects.take(rows), like.categories)


def annotated_tubes(ground_truth: tuple[GroundTruth, ...]) -> list[Tube]:
    """One of each track; ignored objects have none. A track that changes its class is a tube of each."""
    boxes: defaultdict[tuple[str, int, int], dict[int, np.ndarray]] = defaultdict(dict)
    for truth in ground_truth:
        video, number = _place(truth)
        objects = truth.objects.take(~truth.objects.ignore)
        assert objects.track_ids is not None
        rows = zip(objects.track_ids.tolist(), objects.labels.tolist(), objects.boxes, strict=True)
        for track, label, box in rows:
            boxes[video, track, label][number] = box
    return [
        Tube(video, label, np.array(sorted(frames)), np.stack([frames[number] for number in sorted(frames)]))
        for (video, _, label), frames in boxes.items()
    ]


def _place(truth: GroundTruth) -> tuple[str, int]:
    place = split_frame_id(truth.image_id)
    assert place is not None  # by `DetectionStore.has_tubes`
    return place

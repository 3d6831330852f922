"""The protocol of tubes: hand-made videos of one and two objects, detected frame by frame and by tubelets."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from detkit.config import UserError
from detkit.evaluation.build import build_evaluators, choose_protocols
from detkit.evaluation.protocols import LinkConfig
from detkit.evaluation.store import DetectionStore
from detkit.evaluation.video import annotated_tubes, boxes_of_frames, complete, tubes_of_video
from detkit.structures import Categories, Detections, GroundTruth, Objects
from detkit.structures.clips import frame_id

CATEGORIES = Categories(("run", "jump"), (1, 2))
NUM_FRAMES, K = 16, 4


def box_at(frame: int) -> list[float]:
    """Moves by 1 px a frame."""
    return [10.0 + frame, 20.0, 30.0 + frame, 50.0]


def truth(video: str, frame: int, label: int = 0, track: int = 0, ignore: bool = False) -> GroundTruth:
    objects = Objects(
        np.array([box_at(frame)], np.float32),
        np.array([label]),
        ignore=np.array([ignore]),
        track_ids=np.array([track]),
    )
    return GroundTruth(frame_id(video, frame), (100, 100), objects)


def detected(
    boxes: Sequence[Sequence[float]], label: int = 0, score: float = 0.9, tubes: list[list[list[float]]] | None = None
) -> Detections:
    count = len(boxes)
    objects = Objects(
        torch.tensor(boxes).reshape(-1, 4),
        torch.full((count,), label),
        scores=torch.full((count,), score),
        tubes=None if tubes is None else torch.tensor(tubes).reshape(count, -1, 4),
    )
    return Detections(objects, CATEGORIES)


def tubelet(start: int, label: int = 0) -> Detections:
    """Of K frames; those after the last frame of the video see it repeated."""
    boxes = [box_at(min(start + offset, NUM_FRAMES - 1)) for offset in range(K)]
    return detected([boxes[0]], label, tubes=[boxes])


def measure(truths: Sequence[GroundTruth], answers: Sequence[Detections]) -> dict[str, float]:
    store = DetectionStore(CATEGORIES, truths)
    for image, detections in zip(truths, answers, strict=True):
        store.update(image.image_id, detections)
    return build_evaluators(["tubes"], store)["tubes"].compute().metrics


def test_right_boxes_in_all_frames_are_a_right_tube() -> None:
    truths = [truth("a", frame) for frame in range(NUM_FRAMES)]
    metrics = measure(truths, [detected([box_at(frame)]) for frame in range(NUM_FRAMES)])
    assert set(metrics.values()) == {1.0}


def test_right_tubelets_are_a_right_tube_and_have_a_box_in_each_frame() -> None:
    truths = [truth("a", frame) for frame in range(NUM_FRAMES)]
    metrics = measure(truths, [tubelet(start) for start in range(NUM_FRAMES)])
    assert set(metrics.values()) == {1.0}


def test_a_tube_of_half_the_frames_counts_at_a_fifth_only() -> None:
    """Its spatio-temporal IoU is 15 / 40 = 0.375: right at 0.2, wrong at 0.5. Of the frames 15 of 40 are right."""
    truths = [truth("a", frame) for frame in range(40)]
    metrics = measure(truths, [detected([box_at(frame)] if frame < 15 else []) for frame in range(40)])
    assert metrics["video-mAP@0.2"] == 1
    assert metrics["video-mAP@0.5"] == 0
    assert metrics["frame-mAP@0.5"] == pytest.approx(15 / 40)


def test_the_class_of_a_tube_counts() -> None:
    truths = [truth("a", frame) for frame in range(NUM_FRAMES)]
    metrics = measure(truths, [detected([box_at(frame)], label=1) for frame in range(NUM_FRAMES)])
    assert metrics["video-mAP@0.2"] == metrics["frame-mAP@0.5"] == 0


def test_videos_do_not_mix() -> None:
    """The same frames in two videos, detected in one of them."""
    truths = [truth(video, frame) for video in "ab" for frame in range(NUM_FRAMES)]
    answers = [detected([box_at(int(t.image_id[2:]))] if t.image_id[0] == "a" else []) for t in truths]  # type: ignore[index, call-overload]
    assert measure(truths, answers)["video-mAP@0.5"] == pytest.approx(0.5)


def test_tracks_become_tubes_and_ignored_objects_none() -> None:
    truths = [truth("a", 0), truth("a", 2), truth("a", 3, ignore=True), truth("a", 5, label=1), truth("b", 1)]
    tubes = [(tube.video, tube.label, tube.frames.tolist()) for tube in annotated_tubes(tuple(truths))]
    assert tubes == [("a", 0, [0, 2]), ("a", 1, [5]), ("b", 0, [1])]


def test_tubelets_that_reach_past_the_end_are_left_out() -> None:
    video = {start: tubelet(start) for start in range(NUM_FRAMES)}
    assert list(complete(video)) == list(range(NUM_FRAMES - K + 1))
    (tube,) = tubes_of_video("a", video)
    assert tube.frames.tolist() == list(range(NUM_FRAMES))
    np.testing.assert_allclose(tube.boxes, [box_at(frame) for frame in range(NUM_FRAMES)], rtol=1e-6)


def test_a_video_shorter_than_a_tubelet_has_those_of_its_first_frame() -> None:
    video = {start: tubelet(start) for start in (0, 1)}
    assert list(complete(video)) == [0]
    (tube,) = tubes_of_video("a", video, LinkConfig(min_frames=1))
    assert tube.frames.tolist() == [0, 1]


def test_a_frame_has_the_boxes_of_all_tubelets_that_cover_it_once() -> None:
    """Of a still object the tubelets agree, so that one box is left; of a second one far away it stays."""
    near, far = [10.0, 10.0, 20.0, 20.0], [60.0, 60.0, 80.0, 80.0]
    video = {start: detected([near, far], tubes=[[near] * K, [far] * K]) for start in range(6)}
    boxes = boxes_of_frames(video)
    assert [len(boxes[number]) for number in range(6)] == [2] * 6
    assert boxes[5].boxes.tolist() == [near, far]


def test_only_videos_with_tracks_have_tubes() -> None:
    still = GroundTruth(7, (100, 100), truth("a", 0).objects)
    without = GroundTruth("a/000001", (100, 100), Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
    for image in (still, without):
        store = DetectionStore(CATEGORIES, [image])
        assert "tubes" not in choose_protocols(None, store, (), "this detector")
        with pytest.raises(UserError, match="protocol tubes: measures objects over the frames of videos"):
            choose_protocols(["tubes"], store, (), "this detector")
    assert "tubes" in choose_protocols(None, DetectionStore(CATEGORIES, [truth("a", 0)]), (), "this detector")

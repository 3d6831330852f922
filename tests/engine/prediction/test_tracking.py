"""Numbers of objects through the frames of a drawn film, by the library trackers."""

import sys

import numpy as np
import pytest
import torch

from detkit.config import UserError
from detkit.engine.prediction.tracking import NO_TRACK, Tracker
from detkit.structures import Detections
from tests.engine.prediction.drawn import detections_of

NAMES = ["bytetrack", "sort"]
Objects = list[tuple[float, float, int, float]]  # x, y of the middle, label, score


def frame(objects: Objects) -> Detections:
    """Squares of 40 px; the score of each tells which it is after they are put in order."""
    boxes = [(x - 20, y - 20, x + 20, y + 20) for x, y, _, _ in objects]
    return detections_of(boxes, [label for *_, label, _ in objects], [score for *_, score in objects])


def tracks_by_x(detections: Detections) -> list[int]:
    assert detections.objects.track_ids is not None
    order = detections.boxes[:, 0].argsort()
    return detections.objects.track_ids[order].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_two_objects_that_cross_keep_their_numbers(name: str) -> None:
    """One goes right, one goes left, 25 px lower, so that they overlap in the middle of the film. Which of them has the
    better score, and so comes first, changes from frame to frame."""
    pytest.importorskip("trackers")
    tracker, seen = Tracker(name, 30), []
    for step in range(60):
        better, worse = (0.9, 0.8) if step % 2 else (0.8, 0.9)
        detections = frame([(50 + 4 * step, 100, 0, better), (290 - 4 * step, 125, 0, worse)])
        tracked = tracker.update(detections)
        for column in ("boxes", "labels", "scores"):
            assert torch.equal(getattr(tracked, column), getattr(detections, column))
        assert tracked.objects.track_ids is not None
        assert tracked.objects.track_ids.dtype == torch.int64
        upper = int(tracked.boxes[:, 1].argmin())
        seen.append((int(tracked.objects.track_ids[upper]), int(tracked.objects.track_ids[1 - upper])))
    first = {"bytetrack": 1, "sort": 2}[name]
    assert seen[0] == (NO_TRACK, NO_TRACK)
    assert sorted(seen[first]) == [1, 2]
    assert set(seen[first:]) == {seen[first]}


@pytest.mark.parametrize("name", NAMES)
def test_an_object_keeps_its_number_while_nobody_sees_it_for_less_than_a_second(name: str) -> None:
    pytest.importorskip("trackers")
    for fps, missing, same in ((30.0, 20, True), (30.0, 40, False), (10.0, 7, True), (10.0, 15, False)):
        tracker = Tracker(name, fps)
        for _ in range(5):
            before = tracks_by_x(tracker.update(frame([(100, 100, 0, 0.9)])))
        for _ in range(missing):
            assert len(tracker.update(frame([]))) == 0
        for _ in range(5):
            after = tracks_by_x(tracker.update(frame([(100, 100, 0, 0.9)])))
        assert before == [1]
        assert after == ([1] if same else [2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fps", [0.2, 1.0, 240.0])
def test_any_frame_rate(name: str, fps: float) -> None:
    pytest.importorskip("trackers")
    tracker = Tracker(name, fps)
    assert [tracks_by_x(tracker.update(frame([(100, 100, 0, 0.9)]))) for _ in range(6)][-1] == [1]


def test_weak_detections_continue_tracks_and_start_none() -> None:
    """ByteTrack: what falls to 0.2 behind something remains the same object; what never scores more is none."""
    pytest.importorskip("trackers")
    tracker = Tracker("bytetrack", 30)
    for step in range(20):
        score = 0.8 if step < 10 else 0.2
        tracks = tracks_by_x(tracker.update(frame([(100 + step, 100, 0, score), (300, 100, 0, 0.19)])))
    assert tracks == [1, NO_TRACK]


@pytest.mark.parametrize("name", NAMES)
def test_what_passes_the_usual_threshold_has_a_track(name: str) -> None:
    """A detection of 0.5: the library's own thresholds of ByteTrack are 0.6 and 0.7."""
    pytest.importorskip("trackers")
    tracker = Tracker(name, 30)
    assert [tracks_by_x(tracker.update(frame([(100, 100, 0, 0.5)]))) for _ in range(6)][-1] == [1]


@pytest.mark.parametrize("name", NAMES)
def test_the_class_may_change(name: str) -> None:
    pytest.importorskip("trackers")
    tracker = Tracker(name, 30)
    tracks = [tracks_by_x(tracker.update(frame([(100, 100, step % 2, 0.9)]))) for step in range(8)]
    assert tracks[-1] == tracks[-2] == [1]


@pytest.mark.parametrize("name", NAMES)
def test_each_video_counts_from_one(name: str) -> None:
    """The library counts on for all videos together, also while two are read at once."""
    pytest.importorskip("trackers")
    rng = np.random.default_rng(0)
    trackers = [Tracker(name, 30), Tracker(name, 30)]
    for _ in range(6):
        for tracker in trackers:
            jitter = rng.uniform(-1, 1, 2)
            tracks = tracks_by_x(tracker.update(frame([(100 + jitter[0], 50, 0, 0.9), (300 + jitter[1], 50, 1, 0.7)])))
    assert sorted(tracks) == [1, 2]


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(UserError, match=r"to track objects, trackers must be installed: pip install -e '.\[track\]'"):
        Tracker("bytetrack", 30)

"""Linking of tubelets into tubes: tracks by hand, and a slow reference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from detkit.evaluation.linking import LinkConfig, Tubelets, link_tubelets, suppress_tubes, tubelets_of
from detkit.evaluation.tubes import Tube
from tests.evaluation.scenes import Box, detected
from tests.reference import tubes as reference

SHORT = LinkConfig(min_frames=1)


def moved(box: Box, x: float, y: float = 0) -> Box:
    return (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


def frame(start: int, *detections: tuple[Box, float]) -> Tubelets:
    """Tubelets of K = 1 and one class: boxes and scores."""
    boxes = np.array([box for box, _ in detections], np.float32).reshape(-1, 1, 4)
    return Tubelets(start, boxes, np.array([[score] for _, score in detections], np.float32).reshape(-1, 1))


def link(frames: Sequence[Tubelets], config: LinkConfig = SHORT, **changes: Any) -> list[Tube]:
    return link_tubelets(frames, "v", config.model_copy(update=changes))


A = (0, 0, 20, 20)
FAR = (100, 100, 120, 120)


def test_the_defaults_are_the_published_ones() -> None:
    assert LinkConfig().model_dump() == {
        "nms_threshold": 0.3,
        "per_frame": 10,
        "min_overlap": 0.2,
        "max_misses": 5,
        "min_score": 0.01,
        "min_frames": 15,
        "tube_nms_threshold": 0.3,
    }


def test_one_object_is_one_tube_with_the_mean_score() -> None:
    (tube,) = link([frame(t, (moved(A, 4 * t), 0.5 + t / 100)) for t in range(20)], LinkConfig())
    assert (tube.video, tube.label, tube.frames.tolist()) == ("v", 0, list(range(20)))
    np.testing.assert_array_equal(tube.boxes, [moved(A, 4 * t) for t in range(20)])
    assert tube.score == pytest.approx(0.5 + 0.095)


def test_two_objects_that_cross_keep_their_tubes() -> None:
    """In rows 8 px apart, with IoU 240 / 560 where they meet: the worse is suppressed there and interpolated."""
    right = [moved(A, 4 * t) for t in range(21)]
    left = [moved(A, 80 - 4 * t, 8) for t in range(21)]
    frames = [frame(t, (right[t], 0.9), (left[t], 0.6)) for t in range(21)]
    best, other = link(frames, LinkConfig())
    np.testing.assert_array_equal(best.boxes, right)
    assert best.score == pytest.approx(0.9)
    np.testing.assert_allclose(other.boxes, left, atol=1e-4)
    assert other.score == pytest.approx(0.6)


@pytest.mark.parametrize(("missed", "lengths"), [(4, [20]), (5, [8, 7])])
def test_a_gap_is_bridged_unless_the_tube_has_ended(missed: int, lengths: list[int]) -> None:
    frames = [frame(t, (moved(A, t), 0.9)) for t in range(20) if not 8 <= t < 8 + missed]
    tubes = link(frames)
    assert [len(tube.frames) for tube in tubes] == lengths
    for tube in tubes:
        np.testing.assert_allclose(tube.boxes, [moved(A, t) for t in tube.frames.tolist()], atol=1e-5)


def test_a_frame_without_tubelets_counts_like_a_frame_that_is_not_there() -> None:
    frames = [frame(t, *([] if 8 <= t < 13 else [(A, 0.9)])) for t in range(20)]
    assert [len(tube.frames) for tube in link(frames)] == [8, 7]


def test_an_object_that_comes_late_starts_a_tube() -> None:
    frames = [frame(t, *[(FAR, 0.9)] * (t >= 7), (A, 0.5)) for t in range(3, 20)]
    late, early = link(frames)
    assert (late.frames[0], late.frames[-1], late.score) == (7, 19, pytest.approx(0.9))
    assert (early.frames[0], early.frames[-1], early.score) == (3, 19, pytest.approx(0.5))


def test_short_and_weak_tubes_are_dropped() -> None:
    short, weak = [frame(t, (A, 0.9)) for t in range(14)], [frame(t, (A, 0.009)) for t in range(15)]
    assert link(short, LinkConfig()) == []
    assert len(link([*short, frame(14, (A, 0.9))], LinkConfig())) == 1
    assert link(weak, LinkConfig()) == []
    assert len(link(weak, LinkConfig(), min_score=0.008)) == 1


@pytest.mark.parametrize(("starts", "count"), [(9, 0), (10, 1)])
def test_six_frames_of_the_last_tubelet_count_for_the_length(starts: int, count: int) -> None:
    frames = [Tubelets(t, np.tile(np.float32(A), (1, 6, 1)), np.float32([[0.9]])) for t in range(1, 1 + starts)]
    tubes = link(frames, LinkConfig())
    assert [tube.frames.tolist() for tube in tubes] == [list(range(1, 16))] * count


def test_a_tube_takes_the_best_scored_tubelet_that_overlaps_enough_not_the_nearest() -> None:
    near, beside, off = (1, 0, 21, 20), (12, 0, 32, 20), (14, 0, 34, 20)  # IoU with A: 19/21, 1/4, 3/17 < .2
    (tube,) = (
        t
        for t in link(
            [frame(0, (A, 0.9)), frame(1, (near, 0.5), (beside, 0.6), (off, 0.8))],
            nms_threshold=1,
            tube_nms_threshold=1,
        )
        if t.frames[0] == 0
    )
    np.testing.assert_array_equal(tube.boxes, [A, beside])


def test_the_better_tube_chooses_first() -> None:
    between = (8, 0, 28, 20)
    frames = [frame(0, (A, 0.5), (moved(A, 16), 0.7)), frame(1, (between, 0.9))]
    best, other = link(frames, tube_nms_threshold=1)
    np.testing.assert_array_equal(best.boxes, [moved(A, 16), between])
    np.testing.assert_array_equal(other.boxes, [A])


def test_tubes_are_ranked_by_the_mean_of_their_scores_not_by_the_first_or_the_last() -> None:
    """One has .8, .1 and .6, mean .5; the other .7, .7 and .5, mean .633."""
    one, two = A, moved(A, 16)
    frames = [frame(t, (one, a), (two, b)) for t, (a, b) in enumerate([(0.8, 0.7), (0.1, 0.7), (0.6, 0.5)])]
    frames.append(frame(3, ((8, 0, 28, 20), 0.9)))
    lengths = {tuple(tube.boxes[0]): len(tube.frames) for tube in link(frames, tube_nms_threshold=1)}
    assert lengths == {one: 3, two: 4}


def test_only_the_best_of_a_frame_after_suppression_take_part() -> None:
    overlapping = [(moved(A, x), 0.9 - x / 100) for x in range(8)]  # 7 px: IoU 13 / 27 > .3
    apart = [(moved(A, 100, 30 * k), 0.7 - k / 100) for k in range(12)]
    tubes = link([frame(0, *overlapping, *apart)])
    assert [tube.score for tube in tubes] == pytest.approx([0.9, *(0.7 - k / 100 for k in range(9))])


def test_a_box_is_the_mean_of_the_tubelets_in_its_frame() -> None:
    """K = 3 at frames 5, 6 and 8: frame 5 has the first, frame 6 two, 7 two, 8 two, 9 and 10 the last."""
    first, second, third = (np.array([[moved(A, x)] * 3], np.float32) for x in (0, 2, 4))
    score = np.float32([[0.9]])
    (tube,) = link([Tubelets(5, first, score), Tubelets(6, second, score), Tubelets(8, third, score)])
    assert tube.frames.tolist() == [5, 6, 7, 8, 9, 10]
    assert tube.boxes[:, 0].tolist() == [0, 1, 1, 3, 4, 4]


def test_tubelets_overlap_in_the_frames_of_both() -> None:
    """The second tubelet is where the first is in the two frames that they share; elsewhere they are far apart."""
    first = np.array([[FAR, A, A]], np.float32)
    second = np.array([[A, A, FAR]], np.float32)
    score = np.float32([[0.9]])
    assert len(link([Tubelets(0, first, score), Tubelets(1, second, score)])) == 1
    assert len(link([Tubelets(0, first, score), Tubelets(3, second, score)])) == 1  # last box with first box
    assert len(link([Tubelets(0, first, score), Tubelets(3, second[:, ::-1].copy(), score)], tube_nms_threshold=1)) == 2


def test_tubes_that_overlap_are_suppressed_by_the_better_one() -> None:
    frames, far = np.arange(10), np.array([FAR] * 10, np.float32)
    box = np.array([A] * 10, np.float32)
    good, same, part = (
        Tube("v", 0, frames, box, 0.9),
        Tube("v", 0, frames, box, 0.8),
        Tube("v", 0, frames + 6, box, 0.7),
    )
    away = Tube("v", 0, frames, far, 0.1)
    assert suppress_tubes([away, same, part, good], 0.3) == [good, part, away]  # 4 of 16 frames: 0.25
    assert suppress_tubes([away, same, part, good], 0.2) == [good, away]


def test_frames_of_detections_link_by_class() -> None:
    frames = [tubelets_of(t, detected([A, A], [0.9, 0.8], [1, 0])) for t in range(15)]
    assert frames[0].boxes.shape == (2, 1, 4)
    np.testing.assert_allclose(frames[0].scores, [[0, 0.9], [0.8, 0]])
    tubes = link(frames, LinkConfig())
    assert [(tube.label, tube.score) for tube in tubes] == [(0, pytest.approx(0.8)), (1, pytest.approx(0.9))]


def test_a_score_of_zero_does_not_extend_a_tube() -> None:
    frames = [tubelets_of(t, detected([A], [0.9], [int(t >= 5)])) for t in range(10)]
    assert [tube.frames.tolist() for tube in link(frames)] == [list(range(5)), list(range(5, 10))]


def test_nothing_to_link() -> None:
    assert link([]) == []
    assert link([frame(0), frame(1)]) == []
    assert link([tubelets_of(0, detected())]) == []


def test_tubelets_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="tubelets of video 'v': expected each first frame at most once"):
        link([frame(0), frame(0)])
    with pytest.raises(ValueError, match=r"one number of frames and of classes, got \[\(1, 1\), \(2, 1\)\]"):
        link([frame(0), Tubelets(1, np.zeros((0, 2, 4), np.float32), np.zeros((0, 1), np.float32))])


def random_tubelets(rng: np.random.Generator, length: int) -> list[Tubelets]:
    """Of two classes: objects on straight tracks with noise, misses and false ones; scores differ all over."""
    starts = 24
    tracks = [(rng.uniform(0, 100, 2), rng.uniform(-4, 4, 2), rng.uniform(15, 40, 2)) for _ in range(4)]
    frames = []
    for start in range(starts):
        boxes = []
        for corner, speed, side in tracks:
            for _ in range(rng.integers(0, 4)):
                corners = corner + speed * (start + np.arange(length))[:, None] + rng.normal(0, 3, 2)
                boxes.append(np.hstack([corners, corners + side]))
        scores = rng.uniform(0.01, 1, (len(boxes), 2)).astype(np.float32)
        frames.append(Tubelets(start, np.array(boxes, np.float32).reshape(-1, length, 4), scores))
    return frames


@pytest.mark.parametrize("length", [1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slow_reference(length: int, seed: int) -> None:
    frames = random_tubelets(np.random.default_rng(seed), length)
    tubes = link(frames, tube_nms_threshold=1)
    pixels = [(each.boxes - np.float32([0, 0, 1, 1])).tolist() for each in frames]
    assert len(tubes) > 8
    for label in range(2):
        plain = [
            list(zip(boxes, each.scores[:, label].tolist(), strict=True))
            for boxes, each in zip(pixels, frames, strict=True)
        ]
        expected = sorted(reference.link(plain), key=lambda row: -row[0])
        linked = [tube for tube in tubes if tube.label == label]
        assert [tube.score for tube in linked] == pytest.approx([score for score, _ in expected])
        for tube, (_, boxes) in zip(linked, expected, strict=True):
            assert [tube.frames[0], tube.frames[-1]] == [min(boxes), max(boxes)]
            for box, t in zip(tube.boxes, tube.frames.tolist(), strict=True):
                if t in boxes:
                    np.testing.assert_allclose(box - [0, 0, 1, 1], boxes[t], atol=1e-3)

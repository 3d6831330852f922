"""Clips of moving shapes: the same from the same seed, tight boxes, and classes that only time tells."""

import math

import cv2
import numpy as np
import pytest

from detkit.data import moving_shapes_drawing
from detkit.data.moving_shapes_drawing import CLASS_NAMES, SIZE, DrawnClip, draw_clip


def draw_plainly(patch: pytest.MonkeyPatch) -> None:
    """On black, in white, without clutter, blur and noise."""
    patch.setattr(moving_shapes_drawing, "draw_background", lambda rng, size: np.zeros((*size, 3), np.uint8))
    patch.setattr(moving_shapes_drawing, "draw_clutter", lambda rng, image: None)
    patch.setattr(moving_shapes_drawing, "degrade", lambda rng, image: image)
    patch.setattr(
        moving_shapes_drawing, "draw_texture", lambda rng, side, *_: np.full((side, side, 3), 255.0, np.float32)
    )


@pytest.fixture(scope="module")
def plain_clips() -> list[DrawnClip]:
    with pytest.MonkeyPatch.context() as patch:
        draw_plainly(patch)
        return [draw_clip(np.random.default_rng(seed), 16) for seed in range(60)]


@pytest.fixture(scope="module")
def middle_frames() -> list[DrawnClip]:
    """Clips of one frame, which is the middle one."""
    return [draw_clip(np.random.default_rng(seed), 1) for seed in range(500)]


def test_the_same_seed_draws_the_same_clip() -> None:
    one, again, other = (draw_clip(np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.frames, again.frames)
    for first, second in zip(one.objects, again.objects, strict=True):
        assert (first.label, first.track_id) == (second.label, second.track_id)
        np.testing.assert_array_equal(first.boxes, second.boxes)
    assert one.frames.shape != other.frames.shape or (one.frames != other.frames).any()


def test_a_clip_of_one_frame_is_the_middle_of_a_longer_one() -> None:
    """So that what holds for clips of one frame below holds for the middle frame of all."""
    for seed in range(3):
        whole_clip, middle = (draw_clip(np.random.default_rng(seed), count) for count in (16, 1))
        np.testing.assert_array_equal(whole_clip.frames[8], middle.frames[0])
        for item, same in zip(whole_clip.objects, middle.objects, strict=True):
            np.testing.assert_array_equal(item.boxes[8], same.boxes[0])


def test_clips_are_of_the_promised_form() -> None:
    clips = [draw_clip(np.random.default_rng(seed)) for seed in range(12)]
    assert len({len(clip.frames) for clip in clips}) > 3
    for clip in clips:
        assert clip.frames.dtype == np.uint8
        assert 16 <= len(clip.frames) <= 24
        assert clip.frames.shape[1:] == (*SIZE, 3)
        assert [item.track_id for item in clip.objects] == list(range(len(clip.objects)))
        for item in clip.objects:
            assert item.boxes.shape == (len(clip.frames), 4)
            assert item.boxes.dtype == np.float32
            assert (item.boxes[:, :2] >= 0).all()
            assert (item.boxes[:, 2:] <= (SIZE[1], SIZE[0])).all()
            assert (item.boxes[:, 2:] > item.boxes[:, :2]).all()
    assert {len(clip.objects) for clip in clips} == {1, 2, 3}


def test_what_does_not_move_stands_still() -> None:
    """Background, clutter, blur, noise and light are those of the clip."""
    for seed in range(3):
        clip = draw_clip(np.random.default_rng(seed), 16)
        still = np.ones(SIZE, np.bool_)
        for item in clip.objects:
            for x1, y1, x2, y2 in item.boxes.astype(int).tolist():
                still[max(y1 - 5, 0) : y2 + 5, max(x1 - 5, 0) : x2 + 5] = False  # blur reaches out of the box
        assert still.mean() > 0.3
        assert not (clip.frames[:, still] != clip.frames[0, still]).any()


def test_boxes_are_tight_around_what_is_drawn_in_every_frame(plain_clips: list[DrawnClip]) -> None:
    for clip in plain_clips:
        for t, frame in enumerate(clip.frames[..., 0]):
            outside = np.ones(SIZE, np.bool_)
            for item in clip.objects:
                x1, y1, x2, y2 = item.boxes[t].astype(int).tolist()
                inside = frame[y1:y2, x1:x2] >= 127
                assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
                outside[y1:y2, x1:x2] = False
            # the edges of two shapes, each less than half of a pixel, can add up to more
            assert len(clip.objects) > 1 or not (frame[outside] > 128).any()


def whole(boxes: np.ndarray) -> bool:
    """Whether the object is inside the picture in all frames."""
    return bool((boxes[:, :2] > 0).all() and (boxes[:, 2:] < (SIZE[1], SIZE[0])).all())


def test_each_class_moves_as_its_name_says(plain_clips: list[DrawnClip]) -> None:
    seen = set()
    for clip in plain_clips:
        for item in clip.objects:
            if not whole(item.boxes):
                continue
            name, (first, last) = CLASS_NAMES[item.label], item.boxes[[0, -1]]
            x, y = ((last[:2] + last[2:]) - (first[:2] + first[2:])) / 2 / 15  # px a frame, to a pixel in 15 frames
            growth = math.log((last[2:] - last[:2]).sum() / (first[2:] - first[:2]).sum()) / 15
            seen.add(name)
            if name in ("left", "right", "up", "down"):
                sign = 1 if name in ("right", "down") else -1
                along, across = (x, y) if name in ("left", "right") else (y, x)
                assert 0.93 < sign * along < 2.27
                assert abs(across) < 0.07
                assert abs(growth) < 0.005
            elif name in ("grow", "shrink"):
                assert 0.015 < (growth if name == "grow" else -growth) < 0.045
                assert abs(x) + abs(y) < 0.5  # the centre of a turned triangle's box is not that of the triangle
            else:
                assert math.hypot(x, y) < 0.8
    assert seen == set(CLASS_NAMES)


def turned_by(before: np.ndarray, after: np.ndarray) -> float:
    """Degrees clockwise by which the lit pixels of one picture must turn to be those of the other."""
    centres = [np.argwhere(picture >= 127).mean(axis=0)[::-1] for picture in (before, after)]
    overlaps = {}
    for degrees in np.arange(-14, 14.5, 0.5):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turn = np.array([[cos, -sin], [sin, cos]])  # y points down, so that x to y is clockwise
        moved = cv2.warpAffine(before, np.column_stack([turn, centres[1] - turn @ centres[0]]), SIZE[::-1])
        overlaps[degrees] = np.abs(moved.astype(float) - after).sum()
    return float(min(overlaps, key=lambda degrees: overlaps[degrees]))


def test_spins_turn_as_their_names_say_and_others_do_not(plain_clips: list[DrawnClip]) -> None:
    checked = set()
    for clip in plain_clips:
        if len(clip.objects) > 1 or not whole(clip.objects[0].boxes):
            continue
        name = CLASS_NAMES[clip.objects[0].label]
        angle = turned_by(clip.frames[7, ..., 0], clip.frames[8, ..., 0])
        if name.startswith("spin"):
            assert 3.4 < (angle if name == "spin_clockwise" else -angle) < 9.6
        else:
            assert abs(angle) < 2
        checked.add(name)
    assert {"spin_clockwise", "spin_anticlockwise"} < checked


def features_of(clips: list[DrawnClip]) -> tuple[np.ndarray, np.ndarray]:
    """Of every object in the only frame: centre, sides and mean colour `[N, 7]`, and labels `[N]`."""
    rows, labels = [], []
    for clip in clips:
        for item in clip.objects:
            x1, y1, x2, y2 = item.boxes[0].astype(int).tolist()
            colour = clip.frames[0, y1:y2, x1:x2].reshape(-1, 3).mean(axis=0)
            rows.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, *colour])
            labels.append(item.label)
    return np.array(rows), np.array(labels)


def test_classes_are_balanced(middle_frames: list[DrawnClip]) -> None:
    _, labels = features_of(middle_frames)
    shares = np.bincount(labels, minlength=len(CLASS_NAMES)) / len(labels)
    assert len(labels) > 900
    np.testing.assert_allclose(shares, 1 / 8, atol=4 * math.sqrt(7 / 64 / len(labels)))


def test_the_middle_frame_tells_nothing_about_the_class(middle_frames: list[DrawnClip]) -> None:
    features, labels = features_of(middle_frames)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    for label in range(len(CLASS_NAMES)):
        members = features[labels == label]
        assert np.abs(members.mean(axis=0) * math.sqrt(len(members))).max() < 4  # standard errors
    distances = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = labels[np.argsort(distances, axis=1)[:, :15]]
    votes = np.stack([(nearest == label).sum(axis=1) for label in range(len(CLASS_NAMES))], axis=1)
    assert (votes.argmax(axis=1) == labels).mean() < 1 / 8 + 4 * math.sqrt(7 / 64 / len(labels))

"""Detectors of clips on videos: which frames they see, how tubes are joined, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detkit.config import UserError
from detkit.engine.predict import predict
from detkit.engine.prediction import run
from detkit.engine.prediction.clips import Item, with_clips
from detkit.engine.prediction.frames import Frame, Medium
from detkit.engine.prediction.run import predict_files
from detkit.engine.prediction.settings import PredictionConfig
from detkit.structures import Batch, Clip
from tests.engine.prediction.detectors import BrightSpot, spot_picture
from tests.engine.prediction.films import write_film

FILM, OTHER = Medium("a.mp4", "a.mp4", "video"), Medium("b.mp4", "b.mp4", "video")


class MiddleOfClip(BrightSpot):
    """Sees clips of five frames, and detects in the middle one. Asserts that the others are the ones around it."""

    def __init__(self) -> None:
        super().__init__()
        self.input.clip = Clip(5, before=2)
        self.lefts: list[list[int]] = []  # first bright column of each frame, of each clip

    def forward(self, batch: Batch) -> Any:
        for clip in batch.images[:, 0].numpy():
            self.lefts.append([int((frame > 127).any(axis=0).argmax()) for frame in clip])
        images = batch.images[:, :, 2]
        return super().forward(Batch(images.contiguous(), batch.infos))


def stream(medium: Medium, count: int) -> Iterator[Item]:
    for index in range(count):
        yield Frame(medium, np.full((2, 2, 3), index, np.uint8), index, index / 25)
    yield medium


def seen(items: Iterator[Item]) -> list[list[int]]:
    return [item.clip[:, 0, 0, 0].tolist() for item in items if isinstance(item, Frame) and item.clip is not None]


@pytest.mark.parametrize("clip", [Clip(3, before=1), Clip(4, step=2, before=1), Clip(3, before=0), Clip(3, before=2)])
@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_every_frame_has_the_clip_that_positions_describes(clip: Clip, count: int) -> None:
    assert seen(with_clips(stream(FILM, count), clip)) == [clip.positions(place, count) for place in range(count)]


def test_a_clip_does_not_reach_into_the_next_video() -> None:
    def both() -> Iterator[Item]:
        yield from stream(FILM, 3)
        yield from stream(OTHER, 2)

    items = list(with_clips(both(), Clip(3, before=1)))
    assert seen(iter(items)) == [[0, 0, 1], [0, 1, 2], [1, 2, 2], [0, 0, 1], [0, 1, 1]]
    assert [item for item in items if isinstance(item, Medium)] == [FILM, OTHER]


def test_a_frame_comes_as_soon_as_its_clip_is_there() -> None:
    """So that little is held: of an endless stream the first clip needs two frames more."""
    read = []

    def endless() -> Iterator[Item]:
        for index in range(10**9):
            read.append(index)
            yield Frame(FILM, np.zeros((1, 1, 3), np.uint8), index)

    clips = with_clips(endless(), Clip(5, before=2))
    next(clips)
    assert len(read) == 3
    for _ in range(20):
        next(clips)
    assert len(read) == 23


def film(path: Path, num_frames: int) -> Path:
    frames = [spot_picture(60, 80, (2 * index, 12, 2 * index + 24, 36)) for index in range(num_frames)]
    return write_film(path, frames, rate=20, crf="10")


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> MiddleOfClip:
    """Every source is this one."""
    spot = MiddleOfClip()
    monkeypatch.setattr(run, "load_detector", lambda *_: (spot, None))
    return spot


def test_a_detector_of_clips_sees_the_frames_around_each(detector: MiddleOfClip, tmp_path: Path) -> None:
    predict_files("run", [film(tmp_path / "a.mp4", 6)], tmp_path / "out", PredictionConfig(batch_size=4))
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [record["frame"] for record in content] == list(range(6))
    for place, (record, lefts) in enumerate(zip(content, detector.lefts, strict=True)):
        assert lefts == [2 * other for other in Clip(5, before=2).positions(place, 6)]
        np.testing.assert_allclose(record["detections"][0]["box"], [2 * place, 12, 2 * place + 24, 36], atol=1.5)


def test_tubes_are_joined_numbered_and_drawn(detector: MiddleOfClip, tmp_path: Path) -> None:
    config = PredictionConfig(tubes=True)
    predict_files("run", [film(tmp_path / "a.mp4", 20)], tmp_path / "out", config)
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [[each["track"] for each in record["detections"]] for record in content] == [[1]] * 20
    assert [record["detections"][0]["score"] for record in content] == pytest.approx([0.75] * 20)
    capture = cv2.VideoCapture(str(tmp_path / "out" / "a.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 20


def test_a_tube_that_scores_too_little_or_is_too_short_is_left_out(detector: MiddleOfClip, tmp_path: Path) -> None:
    for name, count, threshold, expected in (("a", 20, 0.8, 0), ("b", 20, 0.7, 20), ("c", 14, 0.7, 0)):
        config = PredictionConfig(tubes=True, score_threshold=threshold)
        predict_files("run", [film(tmp_path / f"{name}.mp4", count)], tmp_path / name, config, save=())
        content = json.loads((tmp_path / name / "detections.json").read_text())
        assert sum(len(record["detections"]) for record in content) == expected


def test_a_picture_is_a_fault_of_its_own(detector: MiddleOfClip, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "still.png"), spot_picture(60, 80, (8, 12, 32, 36)))
    files = [tmp_path / "still.png", film(tmp_path / "a.mp4", 3)]
    summary = predict_files("run", files, tmp_path / "out", save=())
    assert len(summary.faults) == 1
    assert "this detector takes clips of 5 frames" in summary.faults[0].message
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [record.get("frame") for record in content] == [None, 0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tta": ("flip",)}, "this detector takes clips"),
        ({"tile": 32}, "this detector takes clips"),
        ({"tubes": True, "track": "sort"}, "choose one"),
    ],
)
def test_what_does_not_go_together_is_refused(
    detector: MiddleOfClip, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predict_files("run", [film(tmp_path / "a.mp4", 3)], tmp_path / "out", PredictionConfig(**change))


def test_tubes_need_videos_that_end(detector: MiddleOfClip, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "still.png"), spot_picture(60, 80, None))
    with pytest.raises(UserError, match=r"still.png is none"):
        predict_files("run", [tmp_path / "still.png"], tmp_path / "out", PredictionConfig(tubes=True))


def test_clips_from_python() -> None:
    detector = MiddleOfClip()
    clip = np.stack([spot_picture(60, 80, (4 * index, 12, 4 * index + 24, 36)) for index in range(5)])
    (detections,) = predict(detector, [clip])
    assert detections.boxes.tolist() == [[8, 12, 32, 36]]
    for wrong in (clip[0], clip[:4], clip.astype(np.float32)):
        with pytest.raises(UserError, match=r"takes clips of 5 frames, uint8 \[5, H, W, 3\]"):
            predict(detector, [wrong])

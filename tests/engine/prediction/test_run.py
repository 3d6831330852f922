"""`detkit predict` as a whole: what is written, in which order, and what is left when something goes wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit import cli
from detkit.config import UserError
from detkit.engine.prediction import run
from detkit.engine.prediction.run import predict_files
from detkit.engine.prediction.settings import PredictionConfig
from detkit.engine.prediction.summary import Summary
from detkit.engine.prediction.video import VideoWriter
from tests.engine.prediction.detectors import UNLUCKY, BrightSpot, spot_picture

BOX = (20, 12, 44, 36)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> BrightSpot:
    """Every source is this one."""
    spot = BrightSpot()
    monkeypatch.setattr(run, "load_detector", lambda *_: (spot, None))
    return spot


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def write_film(path: Path, num_frames: int = 8) -> Path:
    """A spot that moves to the right by 4 px a frame, 20 frames a second."""
    writer = VideoWriter(path)
    for index in range(num_frames):
        writer.write(spot_picture(60, 80, (4 * index % 40, 12, 4 * index % 40 + 24, 36)), index / 20)
    writer.close()
    return path


def records(folder: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((folder / "detections.json").read_text())
    return content


def boxes(record: dict[str, Any]) -> list[Any]:
    return [detection["box"] for detection in record["detections"]]


def test_pictures_of_one_input_size_share_a_batch_and_come_in_order(detector: BrightSpot, tmp_path: Path) -> None:
    sizes = [(60, 80), (60, 80), (60, 80), (120, 160), (80, 60), (60, 80)]
    for index, (height, width) in enumerate(sizes):
        save(tmp_path / f"in/{index}.png", spot_picture(height, width, (index + 1, 2, index + 31, 20)))
    summary = predict_files("x", [tmp_path / "in"], tmp_path / "out", PredictionConfig(batch_size=3))
    assert detector.batches == [3, 1, 1, 1]  # the fourth is resized to the same size, but there is room for three
    assert [Path(record["file"]).name for record in records(tmp_path / "out")] == [f"{i}.png" for i in range(6)]
    for index, (record, (height, width)) in enumerate(zip(records(tmp_path / "out"), sizes, strict=True)):
        assert (record["width"], record["height"]) == (width, height)
        assert boxes(record)[0] == pytest.approx((index + 1, 2, index + 31, 20), abs=3)
    assert (summary.num_pictures, summary.num_frames, summary.classes) == (6, 0, {"spot": 6})


def test_bad_files_are_named_and_the_rest_is_done(
    detector: BrightSpot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for name in ("a.png", "b.jpg", "x.jpg/inside.png", "z.png"):
        save(folder / name, spot_picture(60, 80, BOX))
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:300])
    (folder / "._a.png").write_bytes(b"\0\5\26\7 what macOS leaves on other disks")
    (folder / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    save(folder / "unlucky.png", spot_picture(60, 80, BOX, corner=UNLUCKY))
    output = tmp_path / "out"
    assert cli.predict(["x", str(folder), "--output", str(output), "--device", "cpu"]) == 2
    by_name = {Path(record["file"]).name: record for record in records(output)}
    for name in ("a.png", "inside.png", "z.png"):
        assert boxes(by_name[name])[0] == pytest.approx(BOX, abs=3)
        assert Path(by_name[name]["drawing"]).exists()
    assert {name for name, record in by_name.items() if "error" in record} == {"b.jpg", "dangling.jpg", "unlucky.png"}
    printed = capsys.readouterr()
    assert "3 pictures: 3 detections (spot 3)" in printed.out
    assert "._a.png" in printed.out
    _, _, message = printed.err.partition("error: 3 files could not be read as a whole, the rest is done:\n")
    for text in ("b.jpg cannot be decoded", "dangling.jpg", "unlucky.png: this picture is an unlucky one"):
        assert text in message


def test_drawings_are_not_predicted_again(detector: BrightSpot, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", spot_picture(60, 80, BOX))
    for _ in range(2):
        summary = predict_files("x", [tmp_path / "in"], tmp_path / "in/drawn")
        assert summary.num_pictures == 1
    summary = predict_files("x", [tmp_path / "in"], tmp_path / "in/elsewhere")
    assert summary.num_pictures == 1
    assert any("drawn" in item.reason for item in summary.left_out)


def test_a_picture_is_never_drawn_over(detector: BrightSpot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", spot_picture(60, 80, BOX))
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    for output in (tmp_path, Path()):
        with pytest.raises(UserError, match=r"a.png: its drawing would overwrite it; choose another --output"):
            predict_files("x", [path], output)
    assert path.read_bytes() == before
    predict_files("x", [path], tmp_path, save=["csv"])  # which draws nothing


def test_everything_that_can_be_saved(detector: BrightSpot, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    picture = spot_picture(60, 80, BOX)
    save(folder / "sub/a.png", picture)
    write_film(folder / "film.mp4", 3)
    everything: Any = ["drawings", "crops", "json", "csv", "coco", "yolo", "voc"]
    summary = predict_files("x", [folder], output, save=everything)
    assert (summary.num_pictures, summary.num_frames) == (1, 3)
    film, *_, still = records(output)
    assert (film["frame"], film["seconds"], film["drawing"]) == (0, 0.0, str(output / "film.mp4"))
    assert cv2.VideoCapture(str(output / "film.mp4")).read()[1].shape == (60, 80, 3)
    x1, y1, x2, y2 = (round(side) for side in boxes(still)[0])
    crop = np.asarray(Image.open(output / "crops/spot/sub/a.png_0.jpg"))
    assert crop.shape == (y2 - y1, x2 - x1, 3)
    assert np.abs(crop.astype(int) - picture[y1:y2, x1:x2]).mean() < 3
    assert (output / "crops/spot/film.mp4_000002_0.jpg").exists()
    with (output / "detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == ["0", "1", "2", ""]
    assert [float(rows[3][side]) for side in ("x1", "y1", "x2", "y2")] == boxes(still)[0]
    for pictures in ("coco/train", "yolo/images/train", "voc/VOC2007/JPEGImages"):
        names = sorted(path.name for path in (output / pictures).rglob("*.*g"))
        assert names == ["a.png", *(f"film.mp4_{index:06d}.jpg" for index in range(3))]
    with pytest.raises(UserError, match="coco: exists already"):
        predict_files("x", [folder], output, save=["coco"])


def test_only_what_is_asked_for_is_saved(detector: BrightSpot, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", spot_picture(60, 80, BOX))
    predict_files("x", [tmp_path / "in"], tmp_path / "out", save=["json"])
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["detections.json"]


def test_a_picture_without_objects_has_a_record(detector: BrightSpot, tmp_path: Path) -> None:
    save(tmp_path / "a.png", spot_picture(60, 80, None))
    predict_files("x", [tmp_path / "a.png"], tmp_path / "out")
    (record,) = records(tmp_path / "out")
    assert (record["detections"], record["width"], record["height"]) == ([], 80, 60)


def test_the_summary_says_what_was_done_and_where_the_time_went() -> None:
    summary = Summary(num_pictures=4, wall=2.0)
    summary.classes.update({"cat": 1, "dog": 1000})
    summary.seconds.update(reading=0.2, detecting=1.9, writing=0.4)
    assert summary.lines() == [
        "4 pictures: 1,001 detections (dog 1,000, cat 1)",
        "2.0 a second in 2.0 s; 500.0 ms each, with reading 50.0, detecting 475.0, writing 100.0 ms side by side",
    ]
    assert Summary().lines() == ["no picture: 0 detections"]


@pytest.mark.long
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_all_that_was_done(trained_run: Path, tmp_path: Path, number: int, status: int) -> None:
    film, output = write_film(tmp_path / "film.mp4", 2000), tmp_path / "out"
    words = [sys.executable, "-m", "detkit", "predict", str(trained_run), str(film), "--output", str(output)]
    process = subprocess.Popen(
        [*words, "--device", "cpu", "--save", "drawings,csv,yolo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = output / "detections.jsonl"
    deadline = time.monotonic() + 120
    while not (lines.exists() and lines.read_bytes().count(b"\n") > 20):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    done = records(output)
    assert 20 < len(done) < 2000
    assert [record["frame"] for record in done] == list(range(len(done)))
    assert f"{len(done)} frames: " in printed
    assert "Traceback" not in errors
    assert "resume" not in errors
    capture, num_frames = cv2.VideoCapture(str(output / "film.mp4")), 0
    while capture.read()[0]:
        num_frames += 1
    assert num_frames == len(done)
    assert len(list((output / "yolo/labels").rglob("*.txt"))) == len(done)


def resident_memory() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says so simply how much memory there is")
def test_a_film_takes_constant_memory(detector: BrightSpot, tmp_path: Path) -> None:
    """45 kB a frame before: the results were collected."""
    sizes = []
    for num_frames in (200, 200, 2200):
        film = write_film(tmp_path / "film.mp4", num_frames)
        predict_files("x", [film], tmp_path / "out")
        sizes.append(resident_memory())
    assert sizes[2] - sizes[1] < 2000 * 20_000  # what allocators keep from time to time is more than nothing

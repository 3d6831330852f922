"""Drawn videos: what players, browsers and OpenCV make of them, and what is left of one that was interrupted."""

import gc
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from detkit.config import UserError
from detkit.engine.prediction.video import VideoReader, VideoWriter
from tests.engine.prediction.films import SIZE, bar_of, picture, write_film

ROOT = Path(__file__).resolve().parents[3]


def write(path: Path, images: list[np.ndarray], times: list[float], like: Path | None = None) -> list[str]:
    writer = VideoWriter(path, VideoReader(like) if like else None)
    for image, time in zip(images, times, strict=True):
        writer.write(image, time)
    return writer.close()


def read(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with VideoReader(path) as video:
        pairs = list(video)
        assert video.fault() is None
    return [image for image, _ in pairs], [seconds for _, seconds in pairs]


def pictures(count: int) -> list[np.ndarray]:
    return [picture(index) for index in range(count)]


def test_a_browser_can_play_it(tmp_path: Path) -> None:
    """H.264 with 4:2:0, its colours stated, in an mp4 that has one index of all frames."""
    assert write(tmp_path / "a.mp4", pictures(30), [index / 25 for index in range(30)]) == []
    with av.open(str(tmp_path / "a.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, stream.start_time) == (30, 0)
        assert stream.duration * stream.time_base == Fraction(30, 25)
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (5, 1)
    boxes = top_boxes(tmp_path / "a.mp4")
    assert boxes.count("moov") == 1
    assert "moof" not in boxes


def top_boxes(path: Path) -> list[str]:
    data, boxes, place = path.read_bytes(), [], 0
    while place < len(data):
        boxes.append(data[place + 4 : place + 8].decode("latin1"))
        place += int.from_bytes(data[place : place + 4], "big")
    return boxes


def test_frames_are_those_that_were_written_as_opencv_sees_them(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", pictures(12), [index / 25 for index in range(12)])
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    for index in range(12):
        decoded, image = capture.read()
        assert decoded
        assert np.abs(image[..., ::-1].astype(int) - picture(index)).mean() < 4
    assert not capture.read()[0]


@pytest.mark.parametrize("like_given", [False, True])
def test_a_variable_frame_rate_keeps_its_times(like_given: bool, tmp_path: Path) -> None:
    """mp4v of OpenCV turned 5 s into 0.24 s."""
    times = [0.0, 0.04, 0.5, 0.541, 3.0, 4.96]
    source = write_film(tmp_path / "in.mp4", 6, times)
    write(tmp_path / "out.mp4", pictures(6), times, source if like_given else None)
    images, seconds = read(tmp_path / "out.mp4")
    assert seconds == pytest.approx(times, abs=0.0005)
    assert [bar_of(image) for image in images] == list(range(6))


@pytest.mark.parametrize("last", [0.04, 0.5, 1.9])
def test_five_seconds_stay_five_seconds(last: float, tmp_path: Path) -> None:
    """The last frame is shown until the end of the source."""
    times = [0.0, 1.0, 2.0, 3.0, 5 - last]
    source = write_film(tmp_path / "in.mkv", 5, times)
    set_last_duration(source, tmp_path / "in.mp4", last)
    write(tmp_path / "out.mp4", pictures(5), times, tmp_path / "in.mp4")
    with av.open(str(tmp_path / "out.mp4")) as film:
        assert film.duration / av.time_base == pytest.approx(5, abs=0.001)


def set_last_duration(source: Path, target: Path, seconds: float) -> None:
    """Copies a film into an mp4 whose last frame is shown for so long."""
    with av.open(str(source)) as film, av.open(str(target), "w") as copy:
        stream = copy.add_stream_from_template(film.streams.video[0])
        packets = [packet for packet in film.demux(video=0) if packet.dts is not None]
        packets[-1].duration = round(seconds / packets[-1].time_base)
        for packet in packets:
            packet.stream = stream
            copy.mux(packet)


def test_an_interrupted_video_does_not_show_its_last_frame_for_the_rest(tmp_path: Path) -> None:
    source = write_film(tmp_path / "in.mp4", 100, sound="aac")
    write(tmp_path / "out.mp4", pictures(20), [index / 25 for index in range(20)], source)
    with av.open(str(tmp_path / "out.mp4")) as film:
        assert film.duration / av.time_base == pytest.approx(0.8, abs=0.05)  # with a last packet of sound


def test_one_frame(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", pictures(1), [0.0])
    images, _ = read(tmp_path / "a.mp4")
    assert len(images) == 1
    source = tmp_path / "in.mp4"
    set_last_duration(write_film(tmp_path / "in.mkv", 1), source, 3.0)
    write(tmp_path / "b.mp4", pictures(1), [0.0], source)
    with av.open(str(tmp_path / "b.mp4")) as film:
        assert film.duration / av.time_base == pytest.approx(3, abs=0.001)


def test_no_frame_no_file(tmp_path: Path) -> None:
    assert VideoWriter(tmp_path / "a.mp4").close() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(63, 95), (64, 95), (63, 96), (1, 1)])
def test_odd_sizes_lose_nothing(size: tuple[int, int], tmp_path: Path) -> None:
    image = np.full((*size, 3), 30, np.uint8)
    image[-1], image[:, -1] = 230, 230
    notes = write(tmp_path / "a.mp4", [image] * 3, [0.0, 0.1, 0.2])
    decoded = read(tmp_path / "a.mp4")[0][0]
    height, width = size
    assert decoded.shape[:2] == (height + height % 2, width + width % 2)
    assert np.abs(decoded[:height, :width].astype(int) - image).mean() < 8
    assert decoded[-1].mean() > 200
    assert notes == [
        f"{tmp_path / 'a.mp4'}: {width} x {height} is made even for H.264, by repeating the last row or column"
    ]


def test_a_change_of_size_in_mid_stream(tmp_path: Path) -> None:
    wide, tall = np.full((32, 96, 3), 200, np.uint8), np.full((128, 96, 3), 200, np.uint8)
    notes = write(tmp_path / "a.mp4", [picture(0), wide, tall], [0.0, 0.1, 0.2])
    images, _ = read(tmp_path / "a.mp4")
    assert {image.shape for image in images} == {(*SIZE, 3)}
    assert images[1][:30].mean() > 180  # 32 x 96 fits as it is
    assert images[1][34:].mean() < 20
    assert images[2][:, :46].mean() > 180  # 128 x 96 becomes 64 x 48
    assert images[2][:, 50:].mean() < 20
    assert len(notes) == 1
    assert "frames of another size than the first, 96 x 64, are scaled" in notes[0]


@pytest.mark.parametrize(
    ("name", "sound"),
    [
        ("a.mp4", "aac"),
        ("a.ts", "aac"),
        ("late.ts", "aac"),
        ("a.mkv", "ac3"),
        ("a.avi", "libmp3lame"),
        ("a.mkv", "libopus"),
        ("a.mkv", "flac"),
    ],
)
def test_sound_comes_along_as_it_is(name: str, sound: str, tmp_path: Path) -> None:
    codec = "mpeg4" if name == "a.avi" else "h264"
    container = {"output_ts_offset": "50"} if name == "late.ts" else {}  # s
    source = write_film(tmp_path / name, 50, codec=codec, sound=sound, container=container)
    with VideoReader(source) as video:
        pairs = list(video)
        assert video.has_sound
    notes = write(tmp_path / "out.mp4", [image for image, _ in pairs], [seconds for _, seconds in pairs], source)
    assert notes == []
    copied, original = sound_packets(tmp_path / "out.mp4"), sound_packets(source)
    assert len(original) - 1 <= len(copied) <= len(original)
    for (data, seconds), (content, at) in zip(copied, original[-len(copied) :], strict=True):
        assert content.endswith(data)  # in a .ts, behind a header
        assert seconds == pytest.approx(at, abs=0.01)


def sound_packets(path: Path) -> list[tuple[bytes, float]]:
    """Content and time of each."""
    with av.open(str(path)) as film:
        start = (film.start_time or 0) / av.time_base
        packets = [packet for packet in film.demux(audio=0) if packet.pts is not None]
        return [(bytes(packet), float(packet.pts * packet.time_base) - start) for packet in packets]


def test_sound_that_mp4_cannot_hold_is_told(tmp_path: Path) -> None:
    source = write_film(tmp_path / "a.avi", 5, codec="mpeg4", sound="pcm_s16le")
    notes = write(tmp_path / "out.mp4", pictures(5), [index / 25 for index in range(5)], source)
    assert notes == [f"{tmp_path / 'out.mp4'}: without the sound, whose kind, pcm_s16le, mp4 cannot hold"]
    assert len(read(tmp_path / "out.mp4")[0]) == 5


def test_times_that_do_not_go_on_are_mended(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", pictures(4), [0.0, 0.1, 0.1, 0.05])
    assert len(read(tmp_path / "a.mp4")[0]) == 4


@pytest.mark.parametrize("name", ["http:x.mp4", os.fsdecode(b"caf\xe9.mp4")])
def test_names_that_look_like_protocols_or_are_not_utf_8(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        Path(name).touch()
    except OSError:
        pytest.skip("this file system refuses such a name")
    write(Path(name), pictures(2), [0.0, 0.1])
    assert len(read(Path(name))[0]) == 2


END = """
import os, signal, sys
from pathlib import Path
import numpy as np
from detkit.engine.prediction.video import VideoReader, VideoWriter
from tests.engine.prediction.films import picture
import resource
writer = VideoWriter(Path(sys.argv[1]), VideoReader(sys.argv[2]))
{before}
for index in range(150):
    writer.write({image}, index / 25)
{after}
"""


NOISE = "np.random.default_rng(index).integers(0, 256, (64, 96, 3)).astype(np.uint8)"


def run(tmp_path: Path, image: str, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    source = write_film(tmp_path / "in.mp4", 150, sound="aac")
    program = END.format(image=image, before=before, after=after)
    arguments = [sys.executable, "-c", program, str(tmp_path / "out.mp4"), str(source)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("image", ["picture(index)", NOISE])
def test_a_process_that_is_killed_leaves_a_film(image: str, tmp_path: Path) -> None:
    """Up to the last key frame, 2 s apart; OpenCV's could not be opened. Also where frames are a few bytes."""
    done = run(tmp_path, image, after="os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    with VideoReader(tmp_path / "out.mp4") as video:
        assert len(list(video)) >= 50


@pytest.mark.parametrize("limit", [5_000, 200_000])
def test_a_full_disk_is_an_error_of_one_line(limit: int, tmp_path: Path) -> None:
    """At the first frames or later; a limit on the size of files stands in for it."""
    done = run(tmp_path, NOISE, f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))", "writer.close()")
    assert done.stderr.splitlines()[-1].startswith("detkit.config.UserError: ")
    assert f"{tmp_path / 'out.mp4'}: cannot write: File too large" in done.stderr.splitlines()[-1]


def test_after_an_error_the_writer_can_be_closed(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "missing" / "a.mp4")
    for _ in range(2):
        with pytest.raises(UserError, match=r"missing/a.mp4: cannot write: No such file or directory"):
            writer.write(picture(0), 0.0)
        (tmp_path / "missing").mkdir(exist_ok=True)
    assert writer.close() == []
    assert list((tmp_path / "missing").iterdir()) == []  # it does not begin anew, over what it has written before


def test_frames_do_not_wait_for_garbage_collection(tmp_path: Path) -> None:
    """A collection comes after some hundreds of objects, whatever their size: 200 frames of 1080p are 600 MB."""
    with VideoReader(write_film(tmp_path / "in.mp4", [picture(3)] * 20)) as video:
        gc.collect()
        gc.disable()
        try:
            assert sum(1 for _ in video) == 20
            assert gc.collect() < 20
        finally:
            gc.enable()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process from Linux")
@pytest.mark.parametrize("work", ["read", "write"])
def test_memory_stays_flat(work: str, tmp_path: Path) -> None:
    """Over 2,000 frames of 320 x 240, which are 460 MB together."""
    image = cv2.resize(picture(3), (320, 240))
    source = write_film(tmp_path / "in.mp4", [image] * 2000, sound="aac")
    marks: list[int] = []

    def step(index: int) -> None:
        if index in (999, 1999):
            marks.append(resident())

    if work == "read":
        with VideoReader(source) as video:
            for index, _ in enumerate(video):
                step(index)
    else:
        writer = VideoWriter(tmp_path / "out.mp4", VideoReader(source))
        for index in range(2000):
            writer.write(image, index / 25)
            step(index)
        writer.close()
    assert marks[1] - marks[0] < 8_000_000

"""Pictures, videos, streams and cameras as frames; whatever is wrong with them is told and ends nothing."""

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from detkit.config import UserError
from detkit.data import decoding
from detkit.data.pictures import read_picture
from detkit.engine.prediction.folders import LeftOut
from detkit.engine.prediction.frames import Fault, Frame, Medium
from detkit.engine.prediction.reading import read_medium
from tests.engine.prediction.films import SIZE, bar_of, picture, rotate, write_film

Read = Frame | Fault | LeftOut


def read(source: str | Path) -> tuple[list[Frame], list[str], list[str]]:
    """Frames, faults and what is left out."""
    suffix = Path(str(source)).suffix.lower()
    kind = "picture" if suffix in (".jpg", ".png", ".tif", ".gif", ".webp", ".avif", ".ppm", ".bmp") else "video"
    kind = "stream" if "://" in str(source) or str(source).startswith("camera:") else kind
    items = list(read_medium(Medium(str(source), "name", kind)))  # type: ignore[arg-type]
    faults = [item.message for item in items if isinstance(item, Fault)]
    return (
        [item for item in items if isinstance(item, Frame)],
        faults,
        [f"{item.source}: {item.reason}" for item in items if isinstance(item, LeftOut)],
    )


# Pictures


def noise(height: int = 20, width: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


def test_a_picture_is_one_frame_upright_and_in_rgb(tmp_path: Path) -> None:
    upright = np.zeros((20, 40, 3), np.uint8)
    upright[:, :20] = (255, 0, 0)  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show it
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    frames, faults, left_out = read(tmp_path / "turned.png")
    assert np.array_equal(frames[0].image, upright)
    assert (frames[0].index, frames[0].seconds, faults, left_out) == (None, None, [], [])


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """OpenCV ended the process over one of these."""
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    try:
        noise().save(path)
    except OSError:
        pytest.skip("this file system refuses such a name")
    assert read_picture(path).shape == (20, 30, 3)
    write_film(tmp_path / "a.mp4").rename(path.with_suffix(".mp4"))
    assert len(read(path.with_suffix(".mp4"))[0]) == 10


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_broken_pictures_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    rng = np.random.default_rng(0)
    noise().save(path)
    content = path.read_bytes()
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=f"{path} cannot be decoded"):
            read_picture(path)
    for _ in range(200):
        garbled = bytearray(content)
        for place in rng.integers(0, len(content), 4).tolist():
            garbled[place] = int(rng.integers(256))
        path.write_bytes(garbled)
        with contextlib.suppress(UserError):
            assert read_picture(path).ndim == 3


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_short_anywhere_is_refused(progressive: bool, tmp_path: Path) -> None:
    """Also where its preview, a whole JPEG with its own end, comes before the cut."""
    preview = io.BytesIO()
    noise(8, 8).save(preview, "JPEG")
    comment = b"Exif\0\0" + preview.getvalue()
    path, data = tmp_path / "a.jpg", io.BytesIO()
    noise(40, 60).save(data, "JPEG", exif=comment, progressive=progressive)
    content = data.getvalue()
    for length in [*range(1, len(content) - 40, 97), len(content) - 40]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            read_picture(path)
    path.write_bytes(content)
    assert read_picture(path).shape == (40, 60, 3)


def test_a_jpeg_with_more_behind_its_end_is_read(tmp_path: Path) -> None:
    """Phones append films and maps of depth."""
    path = tmp_path / "a.jpg"
    noise().save(path)
    content = path.read_bytes()
    expected = read_picture(path)
    for data in (content + b"\0" * 100, content + content):
        path.write_bytes(data)
        assert np.array_equal(read_picture(path), expected)


def test_files_that_are_no_pictures_are_faults(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "._x.jpg").write_bytes(b"\0\5\26\7" + bytes(100))
    (tmp_path / "empty.png").touch()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "none.ppm").write_bytes(b"P6 0 0 255\n")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in {
        "text.jpg": "cannot be decoded: it is no picture",
        "._x.jpg": "cannot be decoded: it is no picture",
        "empty.png": "cannot be decoded: the file is empty",
        "gone.jpg": "does not exist",
        "none.ppm": "",
        "pipe.jpg": "cannot be decoded: it is not an ordinary file",
    }.items():
        frames, faults, _ = read(tmp_path / name)
        assert frames == []
        assert len(faults) == 1
        assert faults[0].startswith(f"the picture {tmp_path / name} {reason}")
        assert "\n" not in faults[0]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".avif", ".tif"])
def test_further_pages_and_frames_are_counted(suffix: str, tmp_path: Path) -> None:
    pictures = [Image.fromarray(picture(index)) for index in range(3)]
    path = tmp_path / f"a{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    frames, faults, left_out = read(path)
    what = "pages" if suffix == ".tif" else "frames of the animation"
    assert (len(frames), faults, left_out) == (1, [], [f"{path}: only the first of 3 {what} is read"])
    pictures[0].save(path)
    assert read(path)[2] == []


def test_the_previews_in_a_jpeg_are_no_pages(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[noise(64, 96)])
    assert read(tmp_path / "a.jpg")[1:] == ([], [])


# Videos


def test_frames_come_in_order_with_their_times_and_in_rgb(tmp_path: Path) -> None:
    frames, faults, left_out = read(write_film(tmp_path / "a.mp4", 12))
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx([0.04 * index for index in range(12)])
    assert [bar_of(frame.image) for frame in frames] == [index % 10 for index in range(12)]
    assert {frame.fps for frame in frames} == {25}
    assert np.abs(frames[0].image.astype(int) - picture(0)).mean() < 8
    assert (faults, left_out) == ([], [])


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mkv", "ffv1", "yuv420p10le"),
        ("a.mkv", "ffv1", "gray"),
        ("a.mkv", "ffv1", "bgr0"),
        ("a.avi", "mjpeg", "yuvj422p"),
        ("a.mov", "qtrle", "rgb24"),
        ("a.webm", "libvpx-vp9", "yuv444p"),
        ("a.ts", "mpeg2video", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
    ],
)
def test_kinds_of_videos_frame_for_frame_as_opencv(name: str, codec: str, pixels: str, tmp_path: Path) -> None:
    """Odd sizes too, where the codec permits it."""
    odd = codec in ("ffv1", "qtrle", "libvpx-vp9")
    images = [picture(index, (63, 95) if odd else SIZE) for index in range(6)]
    frames, faults, _ = read(write_film(tmp_path / name, images, codec=codec, pixels=pixels))
    assert faults == []
    capture = cv2.VideoCapture(str(tmp_path / name))
    for frame in frames:
        decoded, other = capture.read()
        assert decoded
        assert np.abs(frame.image.astype(int) - other[..., ::-1]).mean() < 2
    assert not capture.read()[0]
    assert [bar_of(frame.image) for frame in frames] == list(range(6))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_videos_of_phones_are_turned(degrees: int, mirrored: bool, tmp_path: Path) -> None:
    """Turned clockwise when they are shown, as `np.rot90` turns by negative numbers; the red corner tells."""
    path = write_film(tmp_path / "a.mp4", 2, codec="mpeg4", rotation=degrees)
    rotate(path, degrees, mirrored)
    stored = picture(0)[:, ::-1] if mirrored else picture(0)
    expected = np.rot90(stored, -degrees // 90)
    frame = read(path)[0][0]
    assert frame.image.shape == expected.shape
    assert np.abs(frame.image.astype(int) - expected).mean() < 8
    if not mirrored:
        _, other = cv2.VideoCapture(str(path)).read()
        assert np.abs(frame.image.astype(int) - other[..., ::-1]).mean() < 2


def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.5, 0.541, 3.0, 4.96]
    for name, codec in (("a.mp4", "h264"), ("a.mkv", "h264"), ("a.webm", "libvpx-vp9")):
        frames = read(write_film(tmp_path / name, 6, times, codec=codec))[0]
        assert [frame.seconds for frame in frames] == pytest.approx(times, abs=0.0006)  # mkv: whole milliseconds


def test_times_begin_at_zero_wherever_the_time_stamps_do(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.ts", 5, [100 + index / 25 for index in range(5)])
    assert [frame.seconds for frame in read(path)[0]] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])


def test_times_go_on_where_the_time_stamps_begin_anew(tmp_path: Path) -> None:
    """As where a recorder joins files of transport streams."""
    times = [0.0, 0.04, 0.5, 0.54, 3.0, 4.96]
    path = write_film(tmp_path / "a.ts", 6, times)
    path.write_bytes(path.read_bytes() * 2)
    seconds = [frame.seconds or 0.0 for frame in read(path)[0]]
    assert len(seconds) == 12
    assert seconds[6] > seconds[5]
    assert np.diff(seconds[:6]) == pytest.approx(np.diff(times))
    assert np.diff(seconds[6:]) == pytest.approx(np.diff(times))


def overwrite(path: Path, place: float, count: int) -> None:
    """Random bytes in the midst of the file."""
    data = bytearray(path.read_bytes())
    start = int(place * len(data))
    data[start : start + count] = np.random.default_rng(0).integers(0, 256, count).astype(np.uint8).tobytes()
    path.write_bytes(data)


def noisy_pictures(count: int) -> list[np.ndarray]:
    """They need many bytes each, so that damage is in few of them."""
    rng = np.random.default_rng(0)
    return [cv2.GaussianBlur(rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8), (0, 0), 1) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "mpeg4", "yuv420p"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.mov", "png", "rgb24"),
        ("a.mp4", "h264", "yuv420p"),
    ],
)
def test_a_video_is_read_on_behind_damage(name: str, codec: str, pixels: str, tmp_path: Path) -> None:
    """OpenCV ended there, without a word: 13 of 60 frames and status 0."""
    options = {"g": "10"} if codec in ("mpeg4", "h264") else {}
    path = write_film(tmp_path / name, noisy_pictures(60), codec=codec, pixels=pixels, **options)
    whole = read(path)[0]
    overwrite(path, 0.3, 300)
    frames, faults, _ = read(path)
    assert len(frames) >= 50
    assert frames[-1].seconds == whole[-1].seconds
    assert np.array_equal(frames[-1].image, whole[-1].image)
    assert len(faults) == 1
    assert faults[0].startswith(f"{path}: ")
    assert "damaged packet" in faults[0]
    assert faults[0].endswith(f"; {len(frames)} of 60 frames were read")


def test_a_jpeg_of_a_video_that_is_damaged_is_told_and_decoded_as_far_as_it_goes(tmp_path: Path) -> None:
    """FFmpeg decodes it without a word, or, asked to be strict, not at all."""
    path = write_film(tmp_path / "a.avi", noisy_pictures(20), codec="mjpeg", pixels="yuvj420p")
    data = bytearray(path.read_bytes())
    jpeg = data.index(b"\xff\xda", len(data) // 2)  # the pixels of one of them
    data[jpeg + 200 : jpeg + 300] = np.random.default_rng(0).integers(0, 255, 100).astype(np.uint8).tobytes()
    path.write_bytes(data)
    frames, faults, _ = read(path)
    assert (len(frames), faults) == (20, [f"{path}: 1 damaged packet; 20 of 20 frames were read"])


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi", "a.mp4"])
def test_a_file_cut_off_is_read_up_to_there(name: str, tmp_path: Path) -> None:
    codec = {"a.avi": "mpeg4", "a.webm": "libvpx-vp9"}.get(name, "h264")
    options = {"container": {"movflags": "faststart"}} if name == "a.mp4" else {}
    path = write_film(tmp_path / name, noisy_pictures(50), codec=codec, **options)
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    items = list(read_medium(Medium(str(path), "x.mp4", "video")))
    fault = items[-1]
    assert isinstance(fault, Fault)
    assert 10 <= len(items) - 1 < 40
    assert fault.num_frames == 50 - (len(items) - 1)
    assert fault.message.endswith("frames were read")


def test_a_whole_file_has_no_fault_although_its_sound_is_longer(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", 30, sound="aac")
    assert read(path)[1] == []


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.avi").touch()
    os.mkfifo(tmp_path / "pipe.mkv")
    write_film(tmp_path / "cut.mp4")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "cut.mp4").read_bytes()[:1000])
    write_film(tmp_path / "sound.mkv", 5, sound="aac")
    strip_video(tmp_path / "sound.mkv", tmp_path / "music.mp4")
    for name, reason in {
        "text.mp4": "this video cannot be opened: Invalid data found when processing input; is it cut short?",
        "empty.avi": "this video cannot be opened: ",
        "pipe.mkv": "this video cannot be opened: it is not an ordinary file",
        "cut.mp4": "this video cannot be opened: Invalid data found when processing input; is it cut short?",
        "music.mp4": "there is no video in this file, only sound",
        "missing.mp4": "this video cannot be opened: No such file or directory",
    }.items():
        frames, faults, _ = read(tmp_path / name)
        assert (frames, len(faults)) == ([], 1)
        assert faults[0].startswith(f"{tmp_path / name}: {reason}")


def strip_video(source: Path, target: Path) -> None:
    with av.open(str(source)) as film, av.open(str(target), "w") as music:
        track = music.add_stream_from_template(film.streams.audio[0])
        for packet in film.demux(audio=0):
            if packet.dts is not None:
                packet.stream = track
                music.mux(packet)


def test_the_cover_of_a_piece_of_music_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp3"), "w") as music:
        track = music.add_stream("libmp3lame", rate=48_000)
        cover = music.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic.value
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 48_000
        music.mux([*track.encode(tone), *track.encode(None)])
        music.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
    assert read(tmp_path / "a.mp3")[1] == [f"{tmp_path / 'a.mp3'}: there is no video in this file, only sound"]


def test_further_video_tracks_are_counted(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as film:
        streams = [film.add_stream("mpeg4", rate=25) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        image = np.zeros((32, 32, 3), np.uint8)
        for stream in streams:
            film.mux([*stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")), *stream.encode(None)])
    frames, faults, left_out = read(tmp_path / "a.mkv")
    assert (len(frames), faults) == (1, [])
    assert left_out == [f"{tmp_path / 'a.mkv'}: only one of 2 video tracks is read"]


def test_a_video_without_a_frame_that_can_be_decoded(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mkv", noisy_pictures(8), codec="ffv1", pixels="bgr0")
    data = path.read_bytes()
    start = data.index(b"\xa3", 600)  # the first SimpleBlock
    path.write_bytes(data[: start + 12] + bytes(len(data) - start - 12))
    frames, faults, _ = read(path)
    assert frames == []
    assert faults[0].endswith("no frame can be decoded")


def test_reading_can_end_at_any_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    close = decoding.VideoReader.close
    monkeypatch.setattr(decoding.VideoReader, "close", lambda video: (closed.append(video), close(video)))
    frames = read_medium(Medium(str(write_film(tmp_path / "a.mp4")), "a.mp4", "video"))
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert len(closed) == 1


# Streams and cameras


@contextlib.contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=partial(http.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{http.server_port}/live/film.ts?token=secret"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def send(handler: BaseHTTPRequestHandler, content: bytes, stated: int | None = None, wait: float = 0) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(stated or len(content)))
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(content)
        handler.wfile.flush()
        time.sleep(wait)


def test_a_stream_is_read_to_its_end(tmp_path: Path) -> None:
    content = write_film(tmp_path / "a.ts", 30).read_bytes()
    with server(partial(send, content=content)) as url:
        frames, faults, _ = read(url)
    assert [bar_of(frame.image) for frame in frames] == [index % 10 for index in range(30)]
    assert [frame.seconds for frame in frames] == pytest.approx([index / 25 for index in range(30)])
    assert faults == []


@pytest.mark.parametrize("wait", [0, 60])
def test_a_stream_that_stops_in_the_middle_is_a_fault(
    wait: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the server ends the connection or says nothing more; the password is told nobody."""
    monkeypatch.setattr(decoding, "STREAM_TIMEOUT", 1.0)
    content = write_film(tmp_path / "a.ts", noisy_pictures(60), g="10").read_bytes()
    begin = time.monotonic()
    half = content[: len(content) // 2]
    with server(partial(send, content=half, stated=len(content), wait=wait)) as url:
        frames, faults, _ = read(url)
    assert time.monotonic() - begin < 10
    assert len(frames) > 10
    assert len(faults) == 1
    assert faults[0].startswith("http://127.0.0.1:")
    assert "/live/film.ts: the stream broke off: " in faults[0]
    assert f"{len(frames)} " in faults[0]
    assert "secret" not in faults[0]


def test_the_url_of_a_picture_is_one_picture_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = picture(0)
    turned = io.BytesIO()
    Image.fromarray(np.rot90(upright).copy()).save(turned, "JPEG", exif=exif, quality=95)
    with server(partial(send, content=turned.getvalue())) as url:
        frames, faults, _ = read(url.replace("film.ts", "a.jpg"))
    assert ([frame.seconds for frame in frames], faults) == ([None], [])
    assert np.abs(frames[0].image.astype(int) - upright).mean() < 3
    with server(partial(send, content=turned.getvalue()[:500])) as url:
        frames, faults, _ = read(url.replace("film.ts", "a.jpg"))
    assert (frames, len(faults)) == ([], 1)


def test_a_stream_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "STREAM_TIMEOUT", 1.0)
    with server(lambda handler: handler.send_error(404)) as url:
        frames, faults, _ = read(url)
    assert (frames, len(faults)) == ([], 1)
    assert "this stream cannot be opened: " in faults[0]
    assert "secret" not in faults[0]
    assert "this stream cannot be opened: Connection refused" in read(url)[1][0]
    with server(lambda handler: time.sleep(5)) as url:
        assert "this stream cannot be opened: no answer for 1 s" in read(url)[1][0]


class Camera:
    """Stands in for OpenCV's: gives the frames and stops."""

    def __init__(self, frames: list[np.ndarray]) -> None:
        self.frames, self.released = iter(frames), False

    def get(self, _: int) -> float:
        return 30.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        frame = next(self.frames, None)
        return frame is not None, frame

    def release(self) -> None:
        self.released = True


def test_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = Camera([picture(index)[..., ::-1].copy() for index in range(3)])
    monkeypatch.setattr(cv2, "VideoCapture", lambda index: {7: camera}[index])
    frames, faults, _ = read("camera:7")
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert np.array_equal(frames[0].image, picture(0))
    seconds = [frame.seconds for frame in frames]
    assert seconds == sorted(seconds)
    assert faults == ["camera:7: the camera stopped after 3 frames"]
    assert camera.released


def test_no_camera() -> None:
    frames, faults, _ = read("camera:93")
    assert frames == []
    assert faults == ["camera:93: no picture comes from this camera; is it connected, and free?"]

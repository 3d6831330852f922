"""Small films for tests: every frame has a bright bar, whose place tells its number."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIZE = (64, 96)
TICKS = Fraction(1, 90_000)


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Dark, with a bright bar of 8 columns at 8 * (index % 10), and a red top left corner."""
    image = np.full((*size, 3), 40, np.uint8)
    start = 8 * (index % 10)
    image[:, start : start + 8] = 220
    image[:16, :16] = (250, 10, 10)
    return image


def write_film(
    path: Path,
    frames: Sequence[np.ndarray] | int = 10,
    times: Sequence[float] | None = None,
    codec: str = "h264",
    pixels: str = "yuv420p",
    *,
    sound: str | None = None,
    rate: int = 25,
    rotation: int | None = None,
    **options: Any,
) -> Path:
    """Frames, or the first `frames` pictures, at `times` in s (25 a second); `sound` is a codec of as many seconds."""
    images = [picture(index) for index in range(frames)] if isinstance(frames, int) else frames
    times = times or [index / rate for index in range(len(images))]
    ticks = Fraction(1, rate) if path.suffix == ".avi" or codec.startswith("mpeg") else TICKS  # which need a rate
    with av.open(str(path), "w", options=options.pop("container", {})) as film:
        stream = film.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], pixels
        stream.time_base = stream.codec_context.time_base = ticks
        stream.codec_context.max_b_frames = 0
        track = film.add_stream(sound, rate=48_000) if sound else None
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time / ticks), ticks
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
        if track is not None:
            _write_sound(film, track, times[-1] + 1 / rate)
    if rotation is not None:
        rotate(path, rotation)
    return path


def _write_sound(film: Any, track: Any, seconds: float) -> None:
    wave = (8000 * np.sin(np.arange(round(48_000 * seconds)) / 20)).astype(np.int16)
    tone = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
    tone.sample_rate, tone.pts, tone.time_base = 48_000, 0, Fraction(1, 48_000)
    resampler = av.AudioResampler(track.format, "mono", 48_000, track.codec_context.frame_size or 1024)
    for piece in [*resampler.resample(tone), *resampler.resample(None)]:
        film.mux(track.encode(piece))
    film.mux(track.encode(None))


def rotate(path: Path, degrees: int, mirrored: bool = False) -> None:
    """Writes into the header of an mp4 that it is shown turned clockwise by `degrees`, as phones do."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    sign = -1 if mirrored else 1  # of x, before the turn
    one = 1 << 16
    matrix = np.array([sign * cos * one, sign * sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30], ">i4")
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    data[place : place + 36] = matrix.tobytes()
    path.write_bytes(data)


def bar_of(image: np.ndarray) -> int:
    """The number, modulo 10, of a picture of this module."""
    return int(image[image.shape[0] // 2, :80, 1].reshape(10, 8).mean(axis=1).argmax())

"""Frames of video files and streams, upright and with their times. What is damaged is counted; the rest is read on.

Legend: H x W pixels. Frames are uint8 `[H, W, 3]` RGB.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.stream import Disposition
from typing_extensions import Self

from detkit.config import UserError
from detkit.data.stream_urls import is_picture_url, is_url, without_password

Packet: TypeAlias = "av.Packet[Any]"

STREAM_TIMEOUT = 15.0  # s without an answer after which a stream has ended
_MAX_ERRORS = 100  # of the container without a packet between them: then nothing more comes
_KNOWS_ITS_END = ("mov", "matroska", "webm")  # kinds of files whose header states how long they are
_END_TOLERANCE = 0.2  # s
_LARGEST_STEP_BACK = 1.0  # s; time stamps that go back by more begin anew


class VideoReader:
    """Iterates once over (frame, seconds from the start) of a file, or of the URL of a stream.

    Raises UserError if it cannot be opened or has no video. Afterwards, `fault` tells what could not be read.

    num_frames    that the container claims to have; None: it does not say
    fps           frames a second, on average
    has_sound     whether there is any
    is_picture    of a URL: whether it names a single picture
    num_read      frames so far
    num_damaged   packets so far that could not be decoded, or only in part
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self.is_stream = is_url(self.source)
        self.is_picture = self.is_stream and is_picture_url(self.source)
        self.shown = without_password(self.source)
        self.container = self._open()
        try:
            self.stream = self._video_stream()
        except UserError:
            self.close()
            raise
        self._time_base = self.stream.time_base or Fraction(1, av.time_base)
        rate = self.stream.average_rate or self.stream.guessed_rate or 0
        self.fps = float(rate) if 0 < rate <= 1000 else 25.0
        self.num_frames = self.stream.frames or None
        self.has_sound = bool(self.container.streams.audio)
        self.num_read = self.num_damaged = 0
        start = None if self.is_stream else self.container.start_time
        self._start = None if start is None else start / av.time_base  # s: time stamp of the start
        self._end, self._last = 0.0, -1.0  # s: of the packets so far, and of the last frame
        self._error = ""
        # FFmpeg tells of damage in a JPEG only if it is not to mend it. Where that fails it is decoded once more: many
        # webcams write JPEGs that are not quite right.
        self._lenient = None
        if self.stream.codec_context.name == "mjpeg" and not self.is_stream:
            self.stream.codec_context.options = {"err_detect": "explode"}
            self._lenient = av.CodecContext.create("mjpeg", "r")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.container.close()

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        for packet in self.packets():
            if packet.stream_index != self.stream.index:
                continue
            for frame in self._decode(packet):
                try:
                    image = upright(frame)
                except (av.FFmpegError, ValueError):  # samples of a kind that cannot become RGB
                    self.num_damaged += 1
                    continue
                self._last = self._seconds(frame)
                self.num_read += 1
                yield image, self._last

    def packets(self) -> Iterator[Packet]:
        """Of all streams, up to the end of the file; where the container is damaged, from behind that place."""
        errors = 0
        while errors < _MAX_ERRORS:
            try:
                for packet in self.container.demux():
                    errors = 0
                    self._note_end(packet)
                    yield packet
                return
            except av.FFmpegError as error:
                errors += 1
                self.num_damaged += 1
                if self.is_stream:
                    self._error = _reason(error)
                    return

    @property
    def start(self) -> float:
        """The time stamp in s, of the container, from which the times of frames count."""
        return self._start or 0.0

    @property
    def length(self) -> float | None:
        """Of the video in s, from the start, as the container claims."""
        if self.stream.duration is not None:
            first = float((self.stream.start_time or 0) * self._time_base) - self.start
            return first + float(self.stream.duration * self._time_base)
        return self.container.duration / av.time_base if self.container.duration else None

    def fault(self) -> str | None:
        """One line about what could not be read of what came; None: nothing is missing."""
        parts = []
        if self.num_damaged and not self._error:
            parts.append(f"{self.num_damaged} damaged packet{'s' * (self.num_damaged > 1)}")
        if self._error:
            parts.append(f"the stream broke off: {self._error}")
        if self._is_cut():
            parts.append(f"it ends after {self._end:.1f} of {self._duration():.1f} s")
        if not self.num_read:
            parts.append("no frame can be decoded")
        elif parts:
            parts.append(f"{self._share()} frames were read")
        return f"{self.shown}: {'; '.join(parts)}" if parts else None

    @property
    def num_missing(self) -> int:
        """Frames that are lost, as far as that can be told."""
        return max(0, self._expected() - self.num_read) if self.fault() else 0

    def _expected(self) -> int:
        """Frames that the file should have had; without any claim, about as many as fit."""
        return self.num_frames or round((self.length or 0.0) * self.fps)

    def _share(self) -> str:
        about = "" if self.num_frames else "about "
        return f"{self.num_read} of {about}{self._expected()}" if self._expected() else str(self.num_read)

    def _open(self) -> av.container.InputContainer:
        options = {"rtsp_transport": "tcp"} if self.source.startswith("rtsp") else {}
        try:
            if not self.is_stream and not stat.S_ISREG(Path(self.source).stat().st_mode):
                raise UserError(f"{self.shown}: this video cannot be opened: it is not an ordinary file")
            return av.open(
                self.source if self.is_stream else f"file:{self.source}",
                options=options,
                timeout=STREAM_TIMEOUT if self.is_stream else None,
                metadata_errors="replace",
            )
        except (OSError, av.FFmpegError) as error:
            what = "stream" if self.is_stream else "video"
            hint = "; is it cut short?" if isinstance(error, av.InvalidDataError) else ""
            raise UserError(f"{self.shown}: this {what} cannot be opened: {_reason(error)}{hint}") from error

    def _video_stream(self) -> av.VideoStream:
        """The best one. The cover of a piece of music is none."""
        videos = [stream for stream in self.container.streams.video if not _is_cover(stream)]
        if not videos:
            raise UserError(f"{self.shown}: there is no video in this file, only {self._contents()}")
        known = [stream for stream in videos if stream.codec_context is not None]
        if not known:
            raise UserError(f"{self.shown}: FFmpeg has no decoder for this video; convert it to H.264 in an MP4")
        best = self.container.streams.best("video")
        return best if best in known else known[0]

    def _contents(self) -> str:
        return "sound" if self.container.streams.audio else "other data"

    @property
    def num_other_videos(self) -> int:
        """Further video tracks, which are not read."""
        return sum(not _is_cover(stream) for stream in self.container.streams.video) - 1

    def _decode(self, packet: Packet) -> Iterator[av.VideoFrame]:
        damaged = packet.is_corrupt
        frames: list[av.VideoFrame] = []
        try:
            frames = packet.decode()
        except av.FFmpegError:
            damaged = True
            frames = self._decode_in_part(packet)
        damaged = damaged or any(frame.is_corrupt for frame in frames)
        # Who comes into a running stream lacks what its first frames build upon.
        self.num_damaged += damaged and not (self.is_stream and self.num_read == 0)
        yield from frames

    def _decode_in_part(self, packet: Packet) -> list[av.VideoFrame]:
        if self._lenient is None:
            return []
        try:
            return self._lenient.decode(packet)
        except av.FFmpegError:
            return []

    def _note_end(self, packet: Packet) -> None:
        if packet.pts is not None and packet.time_base:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - (self._start or 0.0)
            self._end = max(self._end, end)

    def _duration(self) -> float | None:
        """In s, from the header of the container."""
        duration = self.container.duration
        known = any(name in _KNOWS_ITS_END for name in self.container.format.name.split(","))
        return duration / av.time_base if known and duration else None

    def _is_cut(self) -> bool:
        duration = self._duration()
        return duration is not None and self._end < duration - _END_TOLERANCE

    def _seconds(self, frame: av.VideoFrame) -> float:
        """Later than the last frame, whatever the time stamp says."""
        step = 1 / self.fps
        if frame.pts is None:
            return self._last + step if self.num_read else 0.0
        stamp = float(frame.pts * self._time_base)
        if self._start is None:
            self._start = stamp
        seconds = stamp - self._start
        if self.num_read and seconds <= self._last:
            if seconds < self._last - _LARGEST_STEP_BACK:
                self._start = stamp - self._last - step
            return self._last + step
        return max(0.0, seconds)


def upright(frame: av.VideoFrame) -> np.ndarray:
    """The frame as players show it: turned and mirrored by its display matrix, to the nearest quarter of a turn.

    The matrix takes (x, y) of the stored picture to (a x + c y, b x + d y) of the shown one; its rows are (a, b, u),
    (c, d, v) and (x, y, w).
    """
    image = frame.to_ndarray(format="rgb24")
    try:
        # Not `frame.side_data`, which refers to its frame and is kept by it: such a pair waits for garbage collection.
        matrix: Any = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    except ValueError:  # there is something beside it that this PyAV does not know
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _reason(error: Exception) -> str:
    """Without the name of the source, which may hold a password."""
    if isinstance(error, av.error.ExitError):
        return f"no answer for {STREAM_TIMEOUT:g} s"
    return str(getattr(error, "strerror", None) or type(error).__name__)

"""Drawn videos: H.264 in mp4 that browsers play, every frame at its own time, with the sound of the source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from detkit.config import UserError
from detkit.data.decoding import Packet, VideoReader
from detkit.files import writing
from detkit.structures import Size

__all__ = ["VideoReader", "VideoWriter"]

TICKS = 90_000  # a second: every usual frame rate and every millisecond is a whole number of them, or nearly
KEY_FRAMES = 2  # s between two of them: what is lost if the process is killed
# While it is written, the file is playable up to the last key frame. At the end it becomes an ordinary mp4.
_MP4 = {"movflags": "hybrid_fragmented+frag_keyframe", "flush_packets": "1"}
_ENCODER = {"crf": "20", "preset": "veryfast"}
_BT601, _LIMITED = 5, 1  # the colours of what FFmpeg makes of RGB, and their range, as H.264 counts them
_SOUND = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")  # that mp4 can hold


class VideoWriter:
    """Writes frames, uint8 `[H, W, 3]` RGB, as they come. The first one decides the size, made even by a border.

    The file can be played whenever the process ends. Methods raise UserError if it cannot be written.

    like  the video that the frames are of, for the sound, the rate and the length of the last frame. It is not to be
          read elsewhere, and is closed with this one.
    """

    def __init__(self, path: Path, like: VideoReader | None = None) -> None:
        self.path, self.like = path, like
        self._notes: list[str] = []
        self._size: Size | None = None  # (h, w) of the first frame
        self._container: av.container.OutputContainer | None = None
        self._held: Packet | None = None  # the last one, whose duration depends on what follows
        self._num_frames, self._last, self._longest = 0, 0, 0  # the last two in ticks: last frame, longest duration
        self._sound: _Sound | None = None
        self._failure: UserError | None = None

    def write(self, image: np.ndarray, seconds: float) -> None:
        """`seconds`: from the start of the video to the moment at which the frame is shown."""
        if self._failure is not None:
            raise self._failure
        with self._errors():
            if self._container is None:
                self._open(image.shape[:2])
            ticks = round(seconds * TICKS)
            if self._num_frames:
                ticks = max(ticks, self._last + 1)
                self._longest = max(self._longest, ticks - self._last)
            self._last = ticks
            self._num_frames += 1
            frame = av.VideoFrame.from_ndarray(self._fit(image), format="rgb24")
            frame.pts, frame.time_base = ticks, Fraction(1, TICKS)
            self._mux(self._stream.encode(frame))
            if self._sound is not None:
                self._sound.copy(ticks / TICKS)

    def close(self) -> list[str]:
        """Ends the file; returns what the user should know about it. May be called again."""
        container, self._container = self._container, None
        try:
            if container is not None:
                with self._errors():
                    self._finish(container)
        finally:
            if self.like is not None:
                self.like.close()
        return self._notes

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Names the file in errors of FFmpeg; after one, nothing more is written."""
        try:
            with writing(self.path):
                try:
                    yield
                except av.FFmpegError as error:
                    raise OSError(error.errno, error.strerror) from error
        except UserError as error:
            self._failure = error
            container, self._container = self._container, None
            if container is not None:
                with suppress(av.FFmpegError):
                    container.close()
            raise

    def _open(self, size: Size) -> None:
        self._size = size
        height, width = size[0] + size[0] % 2, size[1] + size[1] % 2
        if (height, width) != size:
            self._notes.append(f"{self.path}: {_wxh(size)} is made even for H.264, by repeating the last row or column")
        container = av.open(f"file:{self.path}", "w", format="mp4", container_options=_MP4)
        fps = Fraction(self.like.fps if self.like else 25).limit_denominator(1001)
        stream = container.add_stream("h264", rate=fps, options=_ENCODER)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        stream.codec_context.max_b_frames = 0  # so that the first frame is at its own time, without an edit list
        stream.codec_context.gop_size = max(1, round(KEY_FRAMES * fps))
        stream.codec_context.colorspace, stream.codec_context.color_range = _BT601, _LIMITED
        self._container, self._stream = container, stream
        if self.like is not None and self.like.has_sound:
            codec = self.like.container.streams.audio[0].codec_context.codec.canonical_name
            if codec in _SOUND:
                self._sound = _Sound(self.like, container)
            else:
                self._notes.append(f"{self.path}: without the sound, whose kind, {codec}, mp4 cannot hold")
        container.start_encoding()

    def _fit(self, image: np.ndarray) -> np.ndarray:
        """The picture at the size of the video: of another size than the first, it is scaled and has a black border."""
        assert self._size is not None
        height, width = self._size
        if image.shape[:2] != self._size:
            note = f"{self.path}: frames of another size than the first, {_wxh(self._size)}, are scaled to that"
            if note not in self._notes:
                self._notes.append(note)
            scale = min(height / image.shape[0], width / image.shape[1])
            h, w = (max(1, round(scale * length)) for length in image.shape[:2])
            image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
            image = cv2.copyMakeBorder(image, 0, height - h, 0, width - w, cv2.BORDER_CONSTANT)
        return cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)

    def _mux(self, packets: Sequence[Packet]) -> None:
        for packet in packets:
            if self._held is not None and self._container is not None:
                self._container.mux(self._held)
            self._held = packet

    def _finish(self, container: av.container.OutputContainer) -> None:
        self._container = container
        self._mux(self._stream.encode(None))
        duration = self._last_duration()
        if self._held is not None:
            self._held.duration = duration
            container.mux(self._held)
        if self._sound is not None:
            self._sound.copy((self._last + duration) / TICKS)
            self._notes += self._sound.notes(self.path)
        self._container = None
        container.close()

    def _last_duration(self) -> int:
        """Of the last frame, in ticks: to the end of the source, if that has no more frames; else as the others."""
        usual = self._longest or round(TICKS / (self.like.fps if self.like else 25))
        length = self.like.length if self.like else None
        if self.like is None or length is None:
            return usual
        rest = round(length * TICKS) - self._last
        is_whole = self._num_frames == self.like.num_frames or rest < 2 * usual
        return rest if is_whole and rest > 0 else usual


class _Sound:
    """Takes the sound of a video over as it is, packet by packet, beside the frames."""

    def __init__(self, source: VideoReader, target: av.container.OutputContainer) -> None:
        self.source, self.target = source, target
        self.template = source.container.streams.audio[0]
        self.stream = target.add_stream_from_template(self.template)
        self.packets = source.packets()
        self.next = self._following()
        self.last: int | None = None
        self.num_lost = 0

    def copy(self, seconds: float) -> None:
        """Up to this time from the start of the video."""
        while self.next is not None and self._time(self.next) < seconds:
            packet, self.next = self.next, self._following()
            if self._time(packet) + float((packet.duration or 0) * packet.time_base) <= 0:
                continue  # what only prepares the decoder; mp4 would begin with it, and the rest would come too late
            shift = round(self.source.start / packet.time_base)
            packet.pts, packet.dts = (packet.pts or 0) - shift, (packet.dts or 0) - shift
            if self.last is not None and packet.dts <= self.last:
                self.num_lost += 1
                continue
            self.last = packet.dts
            packet.stream = self.stream
            try:
                self.target.mux(packet)
            except av.InvalidDataError:
                self.num_lost += 1

    def _time(self, packet: Packet) -> float:
        return float((packet.pts or 0) * packet.time_base) - self.source.start

    def notes(self, path: Path) -> list[str]:
        return [f"{path}: {self.num_lost} damaged packets of the sound are left out"] if self.num_lost else []

    def _following(self) -> Packet | None:
        for packet in self.packets:
            if packet.stream_index == self.template.index and packet.pts is not None and packet.dts is not None:
                return packet
        return None


def _wxh(size: Size) -> str:
    return f"{size[1]} x {size[0]}"

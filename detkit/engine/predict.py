"""A trained detector on pictures and videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from detkit.config import UserError
from detkit.data.collate import collate
from detkit.data.pictures import IMAGE_SUFFIXES, read_picture, upright_size
from detkit.data.transforms import resize_sample
from detkit.detectors.detector import AnyDetector
from detkit.engine.distributed import process_group
from detkit.engine.drawing import PALETTE, draw_box
from detkit.engine.proposal_search import ProposalSource, source_of
from detkit.engine.run_folder import create_folder
from detkit.engine.sources import load_detector
from detkit.engine.speed import accelerate
from detkit.files import writing
from detkit.structures import Detections, Objects, Sample

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


@torch.inference_mode()
def predict(
    detector: AnyDetector,
    images: Sequence[np.ndarray],
    proposals: ProposalSource | None = None,
) -> list[Detections]:
    """Detections of each picture, uint8 `[H, W, 3]` RGB, in its own pixels. Runs on the device of the detector.

    `proposals` is for a detector that is given them; None: the source of its configuration, built at every call.
    """
    detector.eval()
    proposals = proposals or source_of(detector)
    items = []
    for index, image in enumerate(images):
        info = detector.input.place(index, image.shape[:2])
        sample = Sample(image, Objects.empty(), index, proposals.of_picture(image) if proposals else None)
        items.append((resize_sample(sample, info.input_size), info))
    batch = collate(items, detector.input.stride, with_targets=False).to(detector.input.mean.device)
    return detector.postprocess(detector(batch), batch.infos)


def predict_each(detector: AnyDetector, images: Iterable[str | Path | np.ndarray]) -> Iterator[Detections]:
    """Detections of one picture after the other, files or uint8 RGB `[H, W, 3]`; see `detkit.predict`."""
    proposals = source_of(detector)
    for index, image in enumerate(images):
        pixels = read_image(Path(image)) if isinstance(image, str | Path) else image
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise UserError(f"image {index}: expected uint8 [H, W, 3] RGB, found {pixels.dtype} {list(pixels.shape)}")
        yield predict(detector, [pixels], proposals=proposals)[0]


def find_media(sources: Sequence[Path]) -> dict[str, Path]:
    """Pictures and videos among files and folders (searched all the way down), by the name of their drawing.

    A name is the path below the folder, or the file's own; raises UserError if a source is missing or holds neither, or
    if two files would be drawn under one name.
    """
    media: dict[str, Path] = {}
    for source in sources:
        if not source.exists():
            raise UserError(f"{source}: no such file or folder")
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        files = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES and not p.is_dir()]
        if not files:
            raise UserError(f"{source}: no picture or video here; known: {', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}")
        for path in files:
            drawing = path.relative_to(source) if source.is_dir() else Path(path.name)
            name = _drawn_as(drawing).as_posix()
            if media.setdefault(name, path) != path:
                raise UserError(
                    f"{path} and {media[name]} would both be drawn as {name}; predict them into two folders"
                )
    return media


def _drawn_as(path: Path) -> Path:
    """The name of a drawing: of the kind of the picture, if every Pillow can write that in full colours, else PNG."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return path.with_suffix(".mp4")
    return path.with_suffix(".png") if suffix in (".gif", ".avif", ".heic", ".heif") else path


def read_image(path: Path) -> np.ndarray:
    """uint8 `[H, W, 3]` RGB, upright, decoded as in training. Raises UserError for no picture or one cut short."""
    size = upright_size(path, decode=True)  # nobody has checked this file before
    if isinstance(size, str):
        raise UserError(size)
    return read_picture(path)


class Video:
    """Frames of a file, uint8 `[H, W, 3]` RGB; `num_frames` is what the container claims, 0 if it does not say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.capture = cv2.VideoCapture(_opencv_name(path))
        if not self.capture.isOpened():
            raise UserError(f"{path}: cannot open this video")
        self.num_frames = max(0, int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.fps = self.capture.get(cv2.CAP_PROP_FPS) or 25.0

    def __iter__(self) -> Iterator[np.ndarray]:
        decoded, frame = self.capture.read()
        if not decoded:
            raise UserError(f"{self.path}: no frame can be decoded")
        while decoded:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            decoded, frame = self.capture.read()
        self.capture.release()


def _opencv_name(path: Path) -> str:
    """The path as text. OpenCV ends the process over a name that is not UTF-8, which Python keeps as surrogates."""
    name = str(path)
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: the name of a video must be UTF-8 text; rename it") from error
    return name


def draw(image: np.ndarray, detections: Detections, score_threshold: float = 0.5) -> np.ndarray:
    """A copy of the picture with boxes, class names and scores, best on top."""
    canvas: np.ndarray = image.copy()
    shown = int((detections.scores >= score_threshold).sum())
    for index in reversed(range(shown)):
        label = int(detections.labels[index])
        text = f"{detections.categories.names[label]} {detections.scores[index]:.2f}"
        draw_box(canvas, detections.boxes[index].tolist(), text, PALETTE[label % len(PALETTE)])
    return canvas


def predict_files(
    source: str | Path, files: Sequence[Path], output: Path, *, score_threshold: float, device: str
) -> list[dict[str, Any]]:
    """Draws every picture, and every frame of every video, under its name in `output`; returns the detections."""
    media = find_media(files)
    for name, path in media.items():
        if (output / name).resolve() == path.resolve():
            raise UserError(f"{path}: its drawing would overwrite it; choose another --output")
    results = []
    with process_group(device) as own_device:
        detector = load_detector(source)[0].to(own_device)
        accelerate(detector, constant=True)
        proposals = source_of(detector)
        create_folder(output)
        for name, path in tqdm(media.items(), desc="predicting", unit="file", dynamic_ncols=True):
            target = output / name
            create_folder(target.parent)
            if path.suffix.lower() in VIDEO_SUFFIXES:
                results += _predict_video(detector, proposals, path, target, score_threshold)
                continue
            image = read_image(path)
            detections = predict(detector, [image], proposals=proposals)[0]
            with writing(target):
                Image.fromarray(draw(image, detections, score_threshold)).save(target)
            results.append({"file": str(path), "drawing": str(target), "detections": as_dicts(detections)})
    return results


def _predict_video(
    detector: AnyDetector, proposals: ProposalSource | None, path: Path, target: Path, score_threshold: float
) -> list[dict[str, Any]]:
    video, writer, results = Video(path), None, []
    for index, frame in enumerate(tqdm(video, total=video.num_frames or None, desc=path.name, leave=False)):
        detections = predict(detector, [frame], proposals=proposals)[0]
        if writer is None:
            writer = cv2.VideoWriter(
                _opencv_name(target), cv2.VideoWriter.fourcc(*"mp4v"), video.fps, frame.shape[1::-1]
            )
            if not writer.isOpened():
                raise UserError(f"{target}: cannot write this video")
        writer.write(cv2.cvtColor(draw(frame, detections, score_threshold), cv2.COLOR_RGB2BGR))
        results.append({"file": str(path), "frame": index, "drawing": str(target), "detections": as_dicts(detections)})
    if writer is not None:
        writer.release()
        if not cv2.VideoCapture(str(target)).isOpened():  # FFmpeg tells nobody of a full disk
            raise UserError(f"{target}: cannot write this video to its end; is there space left?")
    return results


def as_dicts(detections: Detections) -> list[dict[str, Any]]:
    """One dict a detection: class, score and box (xyxy, pixels of the picture), best first."""
    return [
        {"class": detections.categories.names[label], "score": score, "box": box}
        for label, score, box in zip(
            detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist(), strict=True
        )
    ]

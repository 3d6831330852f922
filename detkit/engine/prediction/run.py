"""Files and streams in, detections out: one stage reads, one detects, one writes, each ahead of the next."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

import torch
from tqdm import tqdm

from detkit.config import UserError
from detkit.detectors.detector import AnyDetector
from detkit.engine.distributed import process_group
from detkit.engine.drawing import DrawingStyle
from detkit.engine.lettering import notes_on_fonts
from detkit.engine.prediction.ahead import ahead
from detkit.engine.prediction.choice import build_choice, drop_early, notes_on_choice
from detkit.engine.prediction.clips import with_clips
from detkit.engine.prediction.data_set import refuse_existing, write_data_sets
from detkit.engine.prediction.frames import Fault, Frame, Medium
from detkit.engine.prediction.inference import Predict, build_predict
from detkit.engine.prediction.interrupts import Stop, Stopped
from detkit.engine.prediction.journal import Journal
from detkit.engine.prediction.media import LeftOut, find_media, without_password
from detkit.engine.prediction.reading import read_medium
from detkit.engine.prediction.records import picture_record
from detkit.engine.prediction.saving import Crops, Drawings, Frames, Save, Saver, Table
from detkit.engine.prediction.settings import PredictionConfig
from detkit.engine.prediction.summary import Summary
from detkit.engine.prediction.tracking import Tracker, TrackerName
from detkit.engine.prediction.tubes import linked
from detkit.engine.proposal_search import source_of
from detkit.engine.run_folder import claim_folder
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.engine.speed import for_prediction
from detkit.evaluation.protocols import LinkConfig
from detkit.structures import Categories, Detections

DATA_SETS = ("coco", "yolo", "voc")
READING_PATIENCE = 1.0  # s that a camera or a stream may take for one more frame when the work ends

Aside: TypeAlias = Fault | LeftOut | Medium  # what goes past the detector; a medium stands for its end
Read: TypeAlias = Frame | Aside
Detected: TypeAlias = tuple[Frame, Detections] | Aside


def predict_files(
    source: str | Path,
    files: Sequence[str | Path],
    output: Path,
    config: PredictionConfig | None = None,
    *,
    save: Sequence[Save] = ("drawings",),
    device: str = "auto",
    overrides: Sequence[str] = (),
    style: DrawingStyle | None = None,
) -> Summary:
    """Detects on pictures, videos and streams, and writes what `save` names into the folder `output`.

    `detections.json` is always written. It has a record for each picture or frame (see `picture_record`, and `file`,
    `frame`, `seconds`, `drawing`), and one with `error` for what could not be read. All that was done by then is there
    too when Ctrl-C or SIGTERM end this, which raises `Stopped`, a KeyboardInterrupt.

    files      see `find_media`
    overrides  changes of the detector's `model`, see `load_detector`
    """
    config, style, output = config or PredictionConfig(), style or DrawingStyle(), Path(output)
    media, left_out = find_media([str(file) for file in files], output)
    _check(media, output, config, save)
    with process_group(device) as own_device:
        detector, trained = load_detector(source, overrides)
        detector = for_prediction(detector.to(own_device))
        predict = build_predict(detector, source_of(detector), _before_linking(config) if config.tubes else config)
        notes = [*detector.notes, *notes_on_choice(config, detector)]
        if "drawings" in save:
            notes += notes_on_fonts(detector.categories.names, style.font)
        summary = Summary(left_out=left_out, notes=notes)
        drop_early(config, detector)
        try:
            with (
                claim_folder(output),
                Stop() as stop,
                _writer(output, detector.categories, config, save, style, summary, stop) as writer,
            ):
                depth, total = config.batch_size, sum(medium.kind == "picture" for medium in media)
                read = ahead(summary.timed("reading", _read(media, detector)), depth, patience=READING_PATIENCE)
                detected = _detect(read, detector, predict, depth, summary)
                detected = _joined(detected, config, detector.categories, trained)
                results = ahead(detected, depth, lambda: stop.signal is not None)
                _write_all(results, writer, summary, total if total == len(media) else None)
            if stop.signal is not None:
                raise Stopped(stop.signal)
        except Stopped as error:
            error.summary = summary
            raise
    return summary


@contextmanager
def _writer(
    output: Path,
    categories: Categories,
    config: PredictionConfig,
    save: Sequence[Save],
    style: DrawingStyle,
    summary: Summary,
    stop: Stop,
) -> Iterator[_Writer]:
    """Closes, however the block ends, every file of it, and writes the data sets."""
    with ExitStack() as at_end:
        journal = Journal(output)
        summary.notes += journal.notes
        at_end.callback(journal.close)
        if data_sets := [name for name in DATA_SETS if name in save]:
            at_end.callback(_write_data_sets, journal, categories, output, data_sets, summary)
        savers = _savers(output, save, style)
        for saver in savers:
            at_end.callback(saver.close)
        at_end.callback(stop.closing)
        yield _Writer(journal, savers, config.track, summary)


def _write_data_sets(
    journal: Journal, categories: Categories, output: Path, formats: Sequence[str], summary: Summary
) -> None:
    summary.data_sets += write_data_sets(journal.records(), categories, output, formats)


def _check(media: Sequence[Medium], output: Path, config: PredictionConfig, save: Sequence[Save]) -> None:
    """Raises UserError for what would fail later, or write over what the user has."""
    if config.track:
        if all(medium.kind == "picture" for medium in media):
            raise UserError("--track numbers the objects of videos and streams, and there is none among these files")
        Tracker(config.track, 25.0)  # its library may be missing
    if config.tubes:
        if config.track:
            raise UserError("--tubes joins the detections of a video, and so does --track: choose one")
        if others := [medium.source for medium in media if medium.kind != "video"]:
            raise UserError(f"--tubes joins the detections of videos that have an end, and {others[0]} is none")
    refuse_existing(output, [name for name in DATA_SETS if name in save])
    for medium in media if "drawings" in save else ():
        if medium.kind != "stream" and (output / medium.name).resolve() == medium.path.resolve():
            raise UserError(f"{medium.source}: its drawing would overwrite it; choose another --output")


def _savers(output: Path, save: Sequence[Save], style: DrawingStyle) -> list[Saver]:
    savers: list[Saver] = []
    if "drawings" in save:
        savers.append(Drawings(output, style))
    if "crops" in save:
        savers.append(Crops(output))
    if "csv" in save:
        savers.append(Table(output))
    if any(name in save for name in DATA_SETS):
        savers.append(Frames(output))
    return savers


def _joined(
    items: Iterator[Detected], config: PredictionConfig, categories: Categories, trained: RunConfig | None
) -> Iterator[Detected]:
    """With the boxes of tubes, where the user asks for them."""
    if not config.tubes:
        return items
    return linked(items, trained.eval.link if trained else LinkConfig(), build_choice(config, categories))


def _before_linking(config: PredictionConfig) -> PredictionConfig:
    """All detections, as the score that counts is that of a tube."""
    return config.model_copy(update={"score_threshold": 0.0, "class_thresholds": {}, "max_detections": None})


def _read(media: Sequence[Medium], detector: AnyDetector) -> Iterator[Read]:
    for medium in media:
        items: Iterator[Read] = chain(read_medium(medium), [medium])
        yield from items if detector.input.clip is None else with_clips(items, detector.input.clip)


def _detect(
    items: Iterator[Read], detector: AnyDetector, predict: Predict, batch_size: int, summary: Summary
) -> Iterator[Detected]:
    """The items in their order, frames with their detections. Frames of one input size are detected together."""
    pending: list[Read] = []
    sizes: list[object] = []  # input sizes of the frames among them

    def flush() -> Iterator[Detected]:
        detected = iter(_detect_batch([item for item in pending if isinstance(item, Frame)], predict))
        results = [next(detected) if isinstance(item, Frame) else item for item in pending]
        pending.clear()
        sizes.clear()
        yield from results

    for item in items:
        if isinstance(item, Frame):
            size = detector.input.place(0, item.image.shape[:2]).input_size
            if sizes and (size != sizes[-1] or len(sizes) == batch_size):
                yield from summary.timed("detecting", flush())
            sizes.append(size)
        pending.append(item)
        if not sizes or (isinstance(item, Frame) and item.medium.kind == "stream"):  # nobody waits for a camera
            yield from summary.timed("detecting", flush())
    yield from summary.timed("detecting", flush())


def _detect_batch(frames: Sequence[Frame], predict: Predict) -> list[tuple[Frame, Detections] | Fault]:
    """A picture that the detector cannot take is a fault of its own and not of its neighbours."""
    if not frames:
        return []
    try:
        return list(zip(frames, predict([frame.seen for frame in frames]), strict=True))
    except torch.OutOfMemoryError as error:
        raise UserError(f"no memory for {len(frames)} pictures at once; use a smaller --batch-size") from error
    except UserError as error:
        if len(frames) == 1:
            return [Fault(frames[0].medium, f"{without_password(frames[0].medium.source)}: {error}", num_frames=1)]
        return [result for frame in frames for result in _detect_batch([frame], predict)]


class _Writer:
    """Hands each result to the records, the savers and the summary, with ids of its objects if they are tracked."""

    def __init__(self, journal: Journal, savers: Sequence[Saver], track: TrackerName | None, summary: Summary) -> None:
        self.journal, self.savers, self.track, self.summary = journal, savers, track, summary
        self.tracker: Tracker | None = None  # of the present video

    def write(self, item: Detected) -> None:
        match item:
            case (frame, detections):
                self._frame(frame, detections)
            case Medium():
                self.summary.notes += [note for saver in self.savers for note in saver.end()]
                self.tracker = None
            case Fault():
                self.summary.faults.append(item)
                self.journal.write({"file": without_password(item.medium.source), "error": item.message})
            case LeftOut():
                self.summary.left_out.append(item)

    def _frame(self, frame: Frame, detections: Detections) -> None:
        record: dict[str, object] = {"file": without_password(frame.medium.source)}
        if frame.index is not None:
            record |= {"frame": frame.index, "seconds": frame.seconds}
            if self.track:
                self.tracker = self.tracker or Tracker(self.track, frame.fps)
                detections = self.tracker.update(detections)
        height, width = frame.image.shape[:2]
        record |= picture_record((height, width), detections)
        for saver in self.savers:
            record |= saver.write(frame, detections)
        self.journal.write(record)
        self.summary.add(frame, detections)


def _write_all(items: Generator[Detected, None, None], writer: _Writer, summary: Summary, total: int | None) -> None:
    start = perf_counter()
    with closing(items), tqdm(desc="predicting", total=total, unit="picture", dynamic_ncols=True) as progress:
        for item in items:
            begin = perf_counter()
            writer.write(item)
            summary.seconds["writing"] += perf_counter() - begin
            summary.wall = perf_counter() - start
            progress.update(isinstance(item, tuple))

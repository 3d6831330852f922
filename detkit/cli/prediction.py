"""`detkit predict`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detkit.cli.command import SOURCE, add_set, run_command
from detkit.config import UserError

if TYPE_CHECKING:
    from detkit.engine.prediction.summary import Summary

SAVE = ("drawings", "crops", "json", "csv", "coco", "yolo", "voc")


def predict(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("predict", description="Detect on pictures, videos and streams.")
    parser.add_argument("source", metavar="RUN", help=f"{SOURCE}, or an exported .onnx or .xml")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="pictures, videos, folders of them, globs in quotes, a .txt that lists them, camera:0, or a stream's URL",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for detections.json and --save")
    parser.add_argument(
        "--save",
        default="drawings",
        metavar="A,B",
        help=f"what to write beside detections.json, of {', '.join(SAVE)}; coco, yolo and voc are data sets (drawings)",
    )
    add_prediction(parser)
    parser.add_argument("--track", metavar="NAME", help="number the objects of a video: bytetrack or sort")
    parser.add_argument("--tubes", action="store_true", help="join the detections of a video over time")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="most pictures detected at once (8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--font", type=Path, metavar="FILE", help="of the names in drawings")
    add_set(parser)
    return run_command(parser, _predict, arguments)


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """The options that choose among detections, which `prediction_settings` reads."""
    parser.add_argument("--classes", metavar="A,B", help="only these classes")
    parser.add_argument(
        "--score-threshold",
        type=_thresholds,
        default=(0.5, {}),
        metavar="S",
        help="leave out detections that score less, by class if you like: 0.3,car=0.6 (0.5)",
    )
    parser.add_argument("--max-detections", type=int, metavar="N", help="of a picture, the best (all)")
    parser.add_argument("--tile", type=int, metavar="PX", help="also detect on tiles of this size, for small objects")
    parser.add_argument("--overlap", type=float, metavar="R", help="of neighbouring tiles, with --tile (0.2)")
    parser.add_argument("--tta", metavar="A,B", help="also detect on changed pictures: flip, scales")


def prediction_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_prediction` say, as the tree of a `PredictionConfig`."""
    plain, by_class = options.score_threshold
    tree: dict[str, Any] = {
        "score_threshold": plain,
        "class_thresholds": by_class,
        "max_detections": options.max_detections,
        "tile": options.tile,
    }
    if options.overlap is not None:
        if options.tile is None:
            raise UserError("--overlap is that of neighbouring tiles, and goes with --tile PX")
        tree["overlap"] = options.overlap
    for name in ("classes", "tta"):
        if getattr(options, name) is not None:
            tree[name] = [part.strip() for part in getattr(options, name).split(",") if part.strip()]
    return tree


def _thresholds(text: str) -> tuple[float, dict[str, float]]:
    """`0.3,car=0.6`: the threshold of all classes, 0.5 unless given, and those of some."""
    plain, by_class = 0.5, {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        try:
            number = float(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected a number or CLASS=NUMBER, found {part!r}") from error
        if equals:
            by_class[name.strip()] = number
        else:
            plain = number
    return plain, by_class


def _predict(options: argparse.Namespace) -> None:
    save = [name.strip() for name in options.save.split(",") if name.strip()]
    for name in save:
        if name not in SAVE:
            raise UserError(f"--save: expected some of {', '.join(SAVE)}, found {name!r}")
    from detkit.config import parse_config
    from detkit.engine.drawing import DrawingStyle
    from detkit.engine.prediction.interrupts import Stopped
    from detkit.engine.prediction.run import predict_files
    from detkit.engine.prediction.settings import PredictionConfig

    own = {"track": options.track, "tubes": options.tubes, "batch_size": options.batch_size}
    tree = {**prediction_settings(options), **own}
    config = parse_config(tree, PredictionConfig, where="predict")
    try:
        summary = predict_files(
            options.source,
            options.files,
            options.output,
            config,
            save=save,
            device=options.device,
            overrides=options.set,
            style=DrawingStyle(font=options.font),
        )
    except Stopped as stopped:
        if stopped.summary:
            _report(stopped.summary, options.output)
        raise
    _report(summary, options.output)
    if summary.faults:
        raise UserError(summary.problem())


def _report(summary: Summary, output: Path) -> None:
    print("\n".join([*summary.lines(), f"-> {output}"]))

"""`detkit export`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import CONFIG, SOURCE, add_set, run_command
from detkit.config import UserError


def export(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "export", description="Write a detector as a file that runs without detkit, and compare the two."
    )
    parser.add_argument("source", metavar="RUN", help=SOURCE)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="its suffix says the format: .onnx, .pt2 (torch.export) or .xml (OpenVINO)",
    )
    parser.add_argument(
        "--input",
        choices=("exact", "resize"),
        default="exact",
        help="exact: the file takes pictures that are resized already; resize: it resizes them itself (exact)",
    )
    parser.add_argument(
        "--raw", action="store_true", help="the network's outputs without decoding and suppression, in fixed shapes"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="pictures at once (default: any number; with --raw 1)")
    parser.add_argument("--size", type=_size, metavar="HxW", help="px of the input, where it is fixed")
    parser.add_argument("--int8", action="store_true", help="in 8 bits, calibrated on the training pictures")
    parser.add_argument("--calibration", type=int, metavar="N", help="pictures for --int8 (128)")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"take the data to compare on from {CONFIG}")
    add_set(parser)
    parser.add_argument("--pictures", type=int, default=16, metavar="N", help="compare on so many (16)")
    parser.add_argument("--licence", metavar="TEXT", help="of the weights, for the metadata")
    parser.add_argument("--accept", action="store_true", help="write the file even if it differs from the detector")
    return run_command(parser, _export, arguments)


def _size(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"(\d+)x(\d+)", text)
    if not sides or "0" in (sides[1].lstrip("0") or "0", sides[2].lstrip("0") or "0"):
        raise argparse.ArgumentTypeError(f"expected HxW in px, such as 480x640, found {text!r}")
    return int(sides[1]), int(sides[2])


def _export(options: argparse.Namespace) -> None:
    for name in ("batch", "calibration", "pictures"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}: expected at least 1, found {value}")
    if options.calibration is not None and not options.int8:
        raise UserError("--calibration: has no effect without --int8")
    from detkit.export.export import DifferenceError, ExportOptions, export_source
    from detkit.export.program import Form

    chosen = ExportOptions(
        form=Form(options.input, options.raw, options.batch, options.size),
        int8=options.int8,
        calibration=options.calibration or 128,
        config=options.config,
        overrides=tuple(options.set),
        num_pictures=options.pictures,
        accept=options.accept,
        licence=options.licence,
    )
    try:
        report = export_source(options.source, options.output, chosen)
    except DifferenceError as error:
        print(error.report.table())
        raise
    print(report.table())
    print(f"{options.output}: {report.summary()}")

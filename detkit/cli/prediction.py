"""`detkit predict`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import SOURCE, run_command, write_json
from detkit.config import UserError


def predict(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("predict", description="Detect on pictures and videos; write drawings and JSON.")
    parser.add_argument("source", metavar="RUN", help=f"{SOURCE}, or an exported .onnx or .xml")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="pictures, videos, or folders of them")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for drawings and detections.json")
    parser.add_argument("--score-threshold", type=float, default=0.5, metavar="S", help="draw from here on (0.5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return run_command(parser, _predict, arguments)


def _predict(options: argparse.Namespace) -> None:
    if not 0 <= options.score_threshold <= 1:
        raise UserError(f"--score-threshold: expected 0 to 1, found {options.score_threshold:g}")
    from detkit.engine.predict import predict_files

    results = predict_files(
        options.source, options.files, options.output, score_threshold=options.score_threshold, device=options.device
    )
    write_json(options.output / "detections.json", results)
    print(f"{len(results)} pictures and frames -> {options.output}")

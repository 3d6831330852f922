"""The commands of detkit, each of which is a script in `tools/` too. None imports torch before its options are read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from detkit.cli.configurations import configs, init, schema
from detkit.cli.convert import convert
from detkit.cli.data import anchors, proposals
from detkit.cli.doctor import doctor
from detkit.cli.evaluation import evaluate
from detkit.cli.export import export
from detkit.cli.prediction import predict
from detkit.cli.report import report
from detkit.cli.serve import serve
from detkit.cli.show import show
from detkit.cli.training import overfit, train
from detkit.cli.weights import compress

__all__ = [
    "anchors",
    "compress",
    "convert",
    "doctor",
    "evaluate",
    "export",
    "main",
    "overfit",
    "predict",
    "proposals",
    "report",
    "serve",
    "show",
    "train",
]

TOP = "Object detection from the sliding window to DETR: train, evaluate, predict, export."
COMMANDS: dict[str, Callable[[Sequence[str] | None], int]] = {
    "train": train,
    "overfit": overfit,
    "show": show,
    "doctor": doctor,
    "eval": evaluate,
    "report": report,
    "predict": predict,
    "serve": serve,
    "export": export,
    "anchors": anchors,
    "proposals": proposals,
    "compress": compress,
    "configs": configs,
    "init": init,
    "convert": convert,
    "schema": schema,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("detkit", description=TOP)
    parser.add_argument("command", choices=COMMANDS, help="each explains itself with --help")
    given = sys.argv[1:] if arguments is None else arguments
    return COMMANDS[parser.parse_args(given[:1]).command](given[1:])

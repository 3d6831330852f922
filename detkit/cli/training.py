"""`detkit train`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import add_set, run_command


def train(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("train", description="Train a detector and validate it as it learns.")
    parser.add_argument("config", type=Path, nargs="?", help="a YAML file of configs/; with --resume: the run's own")
    add_set(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME of the config)"
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with this run from its last checkpoint")
    return run_command(parser, _train, arguments)


def _train(options: argparse.Namespace) -> None:
    import detkit

    detkit.train(options.config, output=options.output, set=options.set, resume=options.resume)

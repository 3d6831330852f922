"""`detkit train`, and `detkit overfit`, the first thing to try when a score is zero."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import CONFIG, SOURCE, add_set, run_command
from detkit.engine.prediction.interrupts import raising_sigterm


def train(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("train", description="Train a detector and validate it as it learns.")
    parser.add_argument("config", type=Path, nargs="?", help=f"{CONFIG}; with --resume: the run's own")
    add_set(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME of the config)"
    )
    parser.add_argument("--init", metavar="SOURCE", help=f"start from these weights: {SOURCE}, or a file of tensors")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with this run from its last checkpoint")
    return run_command(parser, _train, arguments)


def _train(options: argparse.Namespace) -> None:
    import detkit

    with raising_sigterm():
        detkit.train(options.config, output=options.output, set=options.set, init=options.init, resume=options.resume)


def overfit(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("overfit", description="Learn a few pictures by heart; say what does not learn.")
    parser.add_argument("config", help=f"{CONFIG}; nothing is written")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="of the training data, with objects (8)")
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M", help="how long it may take (1)")
    add_set(parser)
    return run_command(parser, _overfit, arguments)


def _overfit(options: argparse.Namespace) -> None:
    from detkit.config import UserError
    from detkit.engine.config_files import load_named
    from detkit.engine.overfit import overfit
    from detkit.engine.overfit_report import describe_overfitting

    if options.images < 1:
        raise UserError(f"--images: expected at least 1, found {options.images}")
    if not options.minutes > 0:
        raise UserError(f"--minutes: expected more than 0, found {options.minutes:g}")
    config = load_named(options.config, options.set)
    print(describe_overfitting(overfit(config, options.images, options.minutes)))

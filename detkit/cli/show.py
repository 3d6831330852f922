"""`detkit show`: pictures of what a configuration does to its data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import CONFIG, add_set, run_command
from detkit.config import UserError


def show(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "show", description="Draw pictures as they are and as the network gets them: the first thing to look at."
    )
    parser.add_argument("config", help=f"{CONFIG}; nothing is trained")
    parser.add_argument("--split", choices=("train", "val"), default="train", help="(train)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the drawings")
    parser.add_argument("--count", type=int, default=10, metavar="N", help="how many pictures (10)")
    parser.add_argument("--epoch", type=int, default=1, metavar="N", help="of the training: 1 is the first (1)")
    add_set(parser)
    return run_command(parser, _show, arguments)


def _show(options: argparse.Namespace) -> None:
    from detkit.engine.config_files import load_named
    from detkit.engine.show import show

    config = load_named(options.config, options.set)
    if options.count < 1:
        raise UserError(f"--count: expected at least 1, found {options.count}")
    if not 1 <= options.epoch <= config.train.epochs:
        raise UserError(f"--epoch: expected 1 to {config.train.epochs}, the train.epochs, found {options.epoch}")
    for line in show(config, options.split, options.output, count=options.count, epoch=options.epoch - 1):
        print(line)

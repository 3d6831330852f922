"""`detkit compress`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import run_command


def compress(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "compress", description="Cut fully connected layers of a trained R-CNN, Fast or Faster R-CNN by truncated SVD."
    )
    parser.add_argument("source", metavar="RUN", help="a run (its last.pt) or a checkpoint")
    parser.add_argument(
        "--ranks", type=int, nargs="+", required=True, metavar="R", help="one a layer; the paper: 1024 256 for VGG16"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="checkpoint for eval and predict")
    return run_command(parser, _compress, arguments)


def _compress(options: argparse.Namespace) -> None:
    from detkit.engine.compress import compress

    print(compress(options.source, options.ranks, options.output))

"""`detkit serve`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detkit.cli.command import SOURCE, add_set, run_command
from detkit.config import parse_config
from detkit.serve.settings import ServeConfig


def serve(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "serve", description="Detect on pictures that come over HTTP, and show a page to try it. Ctrl-C ends it."
    )
    parser.add_argument("source", metavar="RUN", help=f"{SOURCE}, or an exported file")
    for name, field in ServeConfig.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=str if field.annotation is str else float if field.annotation is float else int,
            default=field.default,
            metavar="TEXT" if field.annotation is str else "N",
            help=f"{field.description} ({field.default})",
        )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_set(parser)
    return run_command(parser, _serve, arguments)


def _serve(options: argparse.Namespace) -> None:
    chosen = {name: getattr(options, name) for name in ServeConfig.model_fields}
    config = parse_config(chosen, ServeConfig, where="serve")
    from detkit.export.files import require_extra

    require_extra("serve")
    from detkit.serve.server import serve

    serve(options.source, config, device=options.device, overrides=options.set)

"""`detkit eval`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import SOURCE, add_set, run_command, write_json
from detkit.evaluation.protocols import PROTOCOLS


def evaluate(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("eval", description="Measure a detector on validation data.")
    parser.add_argument("source", nargs="?", metavar="RUN", help=f"{SOURCE} (default: the newest run)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="take the data from this configuration")
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS, help="repeatable (default: all)")
    add_set(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--detections", type=Path, metavar="FILE", help="write the detections here, as COCO results")
    return run_command(parser, _evaluate, arguments)


def _evaluate(options: argparse.Namespace) -> None:
    from detkit.engine.evaluate import evaluate_source
    from detkit.engine.run import create_folder, newest_run
    from detkit.evaluation.report import detections_to_coco, format_table, to_json

    for path in filter(None, (options.json, options.detections)):
        create_folder(path.parent)  # rather now than after an hour of evaluation
    source = options.source or newest_run()
    evaluation, store = evaluate_source(
        source, options.protocol or PROTOCOLS, config=options.config, overrides=options.set
    )
    if int(os.environ.get("RANK", 0)) > 0:
        return  # under torchrun the first process speaks for all
    print(f"{source}\n")
    for protocol in evaluation.results:
        print(format_table(evaluation, protocol), end="\n\n")
    if options.json:
        write_json(options.json, to_json(evaluation))
    if options.detections:
        write_json(options.detections, detections_to_coco(store.detections, store.categories))

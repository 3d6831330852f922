"""`detkit eval`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from detkit.cli.command import CONFIG, SOURCE, add_set, run_command, write_json
from detkit.evaluation.protocols import PROTOCOLS


def evaluate(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("eval", description="Measure a detector on validation data.")
    parser.add_argument(
        "source", nargs="?", metavar="RUN", help=f"{SOURCE}, or an exported .onnx or .xml (default: the newest run)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"take the data from {CONFIG}")
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS, help="repeatable (default: all)")
    add_set(parser)
    parser.add_argument(
        "--class-map", type=Path, metavar="FILE", help="YAML lines `detector's name of a class: the data's name`"
    )
    parser.add_argument("--classes", choices=("all", "shared"), default="all", help="shared: those that both have")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--detections", type=Path, metavar="FILE", help="write the detections here, as COCO results")
    return run_command(parser, _evaluate, arguments)


def _evaluate(options: argparse.Namespace) -> None:
    from detkit.engine.class_match import read_class_map
    from detkit.engine.evaluate import evaluate_source
    from detkit.engine.run import newest_run
    from detkit.engine.run_folder import create_folder
    from detkit.evaluation.report import detections_to_coco, format_table, to_json

    for path in filter(None, (options.json, options.detections)):
        create_folder(path.parent)  # rather now than after an hour of evaluation
    source = options.source or newest_run()
    evaluation, store = evaluate_source(
        source,
        options.protocol or PROTOCOLS,
        config=options.config,
        overrides=options.set,
        class_map=read_class_map(options.class_map) if options.class_map else None,
        classes=options.classes,
    )
    if int(os.environ.get("RANK", 0)) > 0:
        return  # under torchrun the first process speaks for all
    print("\n".join([str(source), *evaluation.notes]), end="\n\n")
    for protocol in evaluation.results:
        print(format_table(evaluation, protocol), end="\n\n")
    if options.json:
        write_json(options.json, to_json(evaluation))
    if options.detections:
        write_json(options.detections, detections_to_coco(store.detections, store.categories))

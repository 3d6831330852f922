"""`detkit eval`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.cli.command import (
    CONFIG,
    SOURCE,
    add_class_match,
    add_set,
    check_file,
    refuse_overwriting,
    run_command,
    write_json,
)
from detkit.config import UserError
from detkit.evaluation.protocols import PROTOCOLS

if TYPE_CHECKING:
    from detkit.engine.foreign_results import Results
    from detkit.evaluation.evaluator import Evaluation
    from detkit.evaluation.store import DetectionStore


def evaluate(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "eval",
        description="Measure a detector on validation data, or the results of any program on their ground truth.",
    )
    parser.add_argument(
        "source", nargs="?", metavar="RUN", help=f"{SOURCE}, or an exported .onnx or .xml (default: the newest run)"
    )
    add_results(parser)
    parser.add_argument("--protocol", action="append", choices=PROTOCOLS, help="repeatable (default: all there is for)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--save-detections", type=Path, metavar="FILE", help="write the detections here (COCO results)")
    return run_command(parser, _evaluate, arguments)


def add_results(parser: argparse.ArgumentParser) -> None:
    """The options of the data and its classes, and those of foreign results."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"take the data from {CONFIG}")
    add_set(parser)
    parser.add_argument(
        "--detections",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="read detections instead of running a detector: COCO results, or VOC's .txt files or their folder",
    )
    parser.add_argument(
        "--ground-truth", type=Path, metavar="PATH", help="of --detections: a COCO file or a VOC folder, or --config"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="the pictures of --ground-truth, if elsewhere")
    parser.add_argument(
        "--image-set", metavar="LIST", help="measure on this list of a VOC folder, as test or 2007_test"
    )
    parser.add_argument(
        "--class-ids",
        choices=("data", "from-0", "from-1"),
        default="data",
        help="how --detections number the classes: by the data's ids (default), or counting its classes from 0 or 1",
    )
    add_class_match(parser)


def results_of_options(options: argparse.Namespace, detections: Sequence[Path]) -> Results:
    """The results in these files, as the options of `add_results` say."""
    from detkit.engine.class_match import read_class_map
    from detkit.engine.foreign_results import load_results

    return load_results(
        detections,
        ground_truth=options.ground_truth,
        config=options.config,
        overrides=options.set,
        images=options.images,
        image_set=options.image_set,
        class_ids=options.class_ids,
        class_map=read_class_map(options.class_map) if options.class_map else None,
    )


def _run(options: argparse.Namespace) -> tuple[str, Evaluation, DetectionStore]:
    """Runs the detector; its name stands above the numbers."""
    from detkit.engine.class_match import read_class_map
    from detkit.engine.evaluate import evaluate_source
    from detkit.engine.run import newest_run

    source = options.source or newest_run()
    evaluation, store = evaluate_source(
        source,
        options.protocol,
        config=options.config,
        overrides=options.set,
        class_map=read_class_map(options.class_map) if options.class_map else None,
        classes=options.classes,
    )
    return str(source), evaluation, store


def check_options(options: argparse.Namespace, sources: object) -> None:
    """Raises UserError for options that do not go together. `sources` is what the command was to run, if anything."""
    if options.detections and (sources or options.classes == "shared"):
        raise UserError(
            "--detections reads results instead of running a detector, so RUN and --classes shared do not go with it; "
            "to write the detections of a run: eval RUN --save-detections FILE"
        )
    for option in ("ground_truth", "images", "image_set"):
        if getattr(options, option) and not options.detections:
            raise UserError(
                f"--{option.replace('_', '-')} goes with --detections FILE, results of another program; the data of a "
                "detector are those of its run, or of --config FILE"
            )


def _evaluate(options: argparse.Namespace) -> None:
    from detkit.engine.foreign_results import evaluate_results
    from detkit.engine.run_folder import create_folder
    from detkit.evaluation.report import detections_to_coco, format_side_by_side, format_table, to_json

    check_options(options, options.source)
    inputs = (options.source, options.config, options.ground_truth, options.class_map, *(options.detections or ()))
    refuse_overwriting((options.json, options.save_detections), inputs)
    for option, path in (("--json", options.json), ("--save-detections", options.save_detections)):
        check_file(option, path)
    for path in filter(None, (options.json, options.save_detections)):
        create_folder(path.parent)  # rather now than after an hour of evaluation
    if options.detections:
        results = results_of_options(options, options.detections)
        evaluation, store = evaluate_results(results, options.protocol), results.store
        title, tables = f"{results.name} on {results.data}", [format_side_by_side(evaluation)]
    else:
        title, evaluation, store = _run(options)
        tables = [format_table(evaluation, protocol) for protocol in evaluation.results]
    if int(os.environ.get("RANK", 0)) > 0:
        return  # under torchrun the first process speaks for all
    print("\n".join([title, *evaluation.notes]), end="\n\n")
    for table in tables:
        print(table, end="\n\n")
    if options.json:
        write_json(options.json, to_json(evaluation))
    if options.save_detections:
        write_json(options.save_detections, detections_to_coco(store.detections, store.categories))

"""`detkit report`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.cli.command import CONFIG, SOURCE, add_set, run_command
from detkit.config import UserError

if TYPE_CHECKING:
    from detkit.inspect.report.subject import Subject


def report(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "report", description="Write one HTML file that shows how good a detector is, why, and what its training was."
    )
    parser.add_argument(
        "sources", nargs="*", metavar="RUN", help=f"{SOURCE}, or an exported file (default: the newest run); a second "
        "one is compared with the first"
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the HTML file")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"take the data from {CONFIG}")
    add_set(parser)
    parser.add_argument(
        "--class-map", type=Path, metavar="FILE", help="YAML lines `detector's name of a class: the data's name`"
    )
    parser.add_argument("--classes", choices=("all", "shared"), default="all", help="shared: those that both have")
    parser.add_argument("--no-doctor", action="store_true", help="leave out what is wrong with the data")
    other = parser.add_argument_group("the results of another tool, in place of a run")
    other.add_argument(
        "--detections",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="COCO results, or VOC's comp4 files, a folder of them; two of COCO or two folders are compared",
    )
    other.add_argument("--ground-truth", type=Path, metavar="GT", help="their data: a COCO file or a VOC folder")
    other.add_argument("--images", type=Path, metavar="DIR", help="the pictures, where they are elsewhere")
    other.add_argument("--image-set", metavar="NAME", help="of a VOC folder: the list of images to measure on")
    other.add_argument(
        "--class-ids", choices=("data", "from-0", "from-1"), default="data", help="how the results number the classes"
    )
    return run_command(parser, _report, arguments)


def _report(options: argparse.Namespace) -> None:
    if len(options.sources) > 2:
        raise UserError(f"report: expected one run, or two to compare, found {len(options.sources)}")
    if options.sources and options.detections:
        raise UserError("report: expected a run or --detections, found both; leave one out")
    if not options.detections and (options.ground_truth or options.images or options.image_set):
        raise UserError(
            "report: --ground-truth, --images and --image-set go with --detections; name it, or use --config"
        )
    from detkit.inspect.report.write import check_output, write_report

    check_output(options.output)
    subjects = _foreign(options) if options.detections else _sources(options)
    if int(os.environ.get("RANK", 0)) > 0:
        return  # under torchrun the first process speaks for all
    write_report(subjects, options.output, doctor=not options.no_doctor)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB, opens in any browser")


def _sources(options: argparse.Namespace) -> list[Subject]:
    from detkit.engine.class_match import read_class_map
    from detkit.engine.run import newest_run
    from detkit.inspect.report.subject import subject_of_source

    return [
        subject_of_source(
            source,
            config=options.config,
            overrides=options.set,
            class_map=read_class_map(options.class_map) if options.class_map else None,
            classes=options.classes,
        )
        for source in options.sources or [newest_run()]
    ]


def _foreign(options: argparse.Namespace) -> list[Subject]:
    from detkit.engine.class_match import read_class_map
    from detkit.engine.foreign_results import load_results
    from detkit.inspect.report.subject import subject_of_results

    paths = options.detections
    two = len(paths) == 2 and all(path.suffix.lower() != ".txt" for path in paths)
    return [
        subject_of_results(
            load_results(
                group,
                ground_truth=options.ground_truth,
                config=options.config,
                overrides=options.set,
                images=options.images,
                image_set=options.image_set,
                class_ids=options.class_ids,
                class_map=read_class_map(options.class_map) if options.class_map else None,
            )
        )
        for group in ([[path] for path in paths] if two else [paths])
    ]

"""`detkit report`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.cli.command import SOURCE, run_command
from detkit.cli.evaluation import add_results, check_options, results_of_options
from detkit.config import UserError

if TYPE_CHECKING:
    from detkit.inspect.report.subject import Subject


def report(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "report", description="Write one HTML file that shows how good a detector is, why, and what its training was."
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="RUN",
        help=f"{SOURCE}, or an exported file (default: the newest run); a second one is compared with the first",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the HTML file")
    add_results(parser)
    parser.add_argument("--no-doctor", action="store_true", help="leave out what is wrong with the data")
    return run_command(parser, _report, arguments)


def _report(options: argparse.Namespace) -> None:
    if len(options.sources) > 2:
        raise UserError(f"report: expected one run, or two to compare, found {len(options.sources)}")
    check_options(options, options.sources)
    from detkit.inspect.report.write import check_output, write_report

    check_output(options.output)
    subjects = _foreign(options) if options.detections else _sources(options)
    if int(os.environ.get("RANK", 0)) > 0:
        return  # under torchrun the first process speaks for all
    write_report(subjects, options.output, doctor=not options.no_doctor)
    size = options.output.stat().st_size
    text = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    print(f"{options.output}: {text}, opens in any browser")


def _sources(options: argparse.Namespace) -> list[Subject]:
    from detkit.engine.class_match import read_class_map
    from detkit.engine.run import newest_run
    from detkit.inspect.report.subject import subjects_of_sources

    return subjects_of_sources(
        options.sources or [newest_run()],
        config=options.config,
        overrides=options.set,
        class_map=read_class_map(options.class_map) if options.class_map else None,
        classes=options.classes,
    )


def _foreign(options: argparse.Namespace) -> list[Subject]:
    """Two files of COCO, or two folders of VOC's files, are two detectors."""
    from detkit.inspect.report.subject import subject_of_results

    paths = options.detections
    two = len(paths) == 2 and all(path.suffix.lower() != ".txt" for path in paths)
    groups = [[path] for path in paths] if two else [paths]
    return [subject_of_results(results_of_options(options, group)) for group in groups]

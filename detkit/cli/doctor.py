"""`detkit doctor`: what is wrong with the data of a configuration, for its detector."""

from __future__ import annotations

import argparse
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

if TYPE_CHECKING:
    from detkit.engine.settings import RunConfig
    from detkit.evaluation.store import DetectionStore


def doctor(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "doctor", description="Say what is wrong with the data of a configuration for its detector, and how to mend it."
    )
    parser.add_argument("config", help=f"{CONFIG}; nothing is trained")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was seen as JSON too")
    parser.add_argument(
        "--fix",
        type=Path,
        metavar="DIR",
        help="write a mended copy of the data to DIR, which does not exist or is empty",
    )
    parser.add_argument("--run", metavar="RUN", help=f"judge the validation labels by a trained detector: {SOURCE}")
    add_class_match(parser)
    add_set(parser)
    return run_command(parser, _doctor, arguments)


def _doctor(options: argparse.Namespace) -> None:
    from detkit.engine.config_files import load_named
    from detkit.inspect.doctor.diagnose import diagnose
    from detkit.inspect.doctor.mend import check_folder, mend
    from detkit.inspect.doctor.text import describe

    if not options.run and (options.class_map or options.classes == "shared"):
        raise UserError("--class-map and --classes shared: have no effect without --run, as they match its classes")
    check_file("--json", options.json)
    refuse_overwriting([options.json], [options.config, options.run, options.class_map])
    config = load_named(options.config, options.set)
    if options.fix:
        check_folder(options.fix, config.data)
    store = _detections(options, config) if options.run else None
    diagnosis = diagnose(config, store=store)
    if options.json:
        write_json(options.json, diagnosis.to_plain())
    print("\n".join(describe(diagnosis)))
    if options.fix:
        print("\n" + "\n".join(mend(config, options.fix)))


def _detections(options: argparse.Namespace, config: RunConfig) -> DetectionStore:
    """Those of the run on the validation data, without the pictures that are flawed where training would stop."""
    from detkit.engine.class_match import read_class_map
    from detkit.engine.evaluate import evaluate_detector
    from detkit.engine.sources import load_detector

    if getattr(config.data, "on_bad_label", None) == "raise":
        config = config.model_copy(update={"data": config.data.model_copy(update={"on_bad_label": "drop_image"})})
    class_map = read_class_map(options.class_map) if options.class_map else None
    detector, _ = load_detector(options.run)
    protocols = (config.eval.protocol,)
    return evaluate_detector(detector, config, protocols, class_map=class_map, classes=options.classes)[1]

"""What a report is about: a detector measured on a data set, from a run or from the results of another tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detkit.engine.evaluate import evaluate_source, evaluation_settings
from detkit.engine.foreign_results import Results, evaluate_results
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.evaluation.analysis import Analysis, analyse
from detkit.evaluation.evaluator import Evaluation
from detkit.evaluation.protocols import PROTOCOLS
from detkit.evaluation.store import DetectionStore
from detkit.inspect.report.run_record import RunRecord, read_run


@dataclass(frozen=True, eq=False)
class Subject:
    """
    name    of the run, or of the files with the detections
    store   the data set and the detections
    data    what it was measured on, in a few words; empty where `config` tells it
    run     what its folder tells of the training; None without one
    config  of the data it was measured on, for the doctor; None for results of another tool
    """

    name: str
    store: DetectionStore
    evaluation: Evaluation
    analysis: Analysis
    data: str = ""
    run: RunRecord | None = None
    config: RunConfig | None = None


def subject_of_source(
    source: str | Path,
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    class_map: Mapping[str, str] | None = None,
    classes: Literal["all", "shared"] = "all",
) -> Subject:
    """A run, a checkpoint, a public detector or an exported file, measured by `evaluate_source`."""
    evaluation, store = evaluate_source(
        source, PROTOCOLS, config=config, overrides=overrides, class_map=class_map, classes=classes
    )
    trained = load_detector(source)[1]
    run = read_run(Path(source), trained) if trained else None
    measured = evaluation_settings(source, trained, config, overrides)
    return Subject(str(source), store, evaluation, analyse(store), run=run, config=measured)


def subject_of_results(results: Results) -> Subject:
    """Detections of another tool; see `detkit.engine.foreign_results`."""
    evaluation = evaluate_results(results, PROTOCOLS)
    return Subject(results.name, results.store, evaluation, analyse(results.store), results.data)

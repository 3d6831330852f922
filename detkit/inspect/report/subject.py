"""What a report is about: a detector measured on a data set, from a run or from the results of another tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from detkit.engine.evaluate import check_effect, evaluate_detector, evaluation_settings
from detkit.engine.foreign_results import Results, evaluate_results
from detkit.engine.overrides import describe_overrides, split_overrides
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.evaluation.analysis import Analysis, analyse
from detkit.evaluation.evaluator import Evaluation
from detkit.evaluation.protocols import MAX_DETECTIONS, PROTOCOLS
from detkit.evaluation.store import DetectionStore
from detkit.inspect.report.run_record import RunRecord, read_run


@dataclass(frozen=True, eq=False)
class Subject:
    """
    name    of the run, or of the files with the detections
    store   the data set and the detections
    data    what it was measured on, in a few words; empty where `config` tells it
    max_detections  of an image and class that count
    run     what its folder tells of the training; None without one
    config  of the data it was measured on, for the doctor; None for results of another tool
    """

    name: str
    store: DetectionStore
    evaluation: Evaluation
    analysis: Analysis
    data: str = ""
    max_detections: int = MAX_DETECTIONS
    run: RunRecord | None = None
    config: RunConfig | None = None


def subjects_of_sources(
    sources: Sequence[str | Path],
    *,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    class_map: Mapping[str, str] | None = None,
    classes: Literal["all", "shared"] = "all",
) -> list[Subject]:
    """Runs, checkpoints, public detectors or exported files, measured as `evaluate_source` does.

    All are loaded before the first is measured, which may take long.
    """
    of_model, others = split_overrides(overrides)
    loaded = []
    for source in sources:
        detector, trained = load_detector(source, of_model)
        settings = evaluation_settings(source, trained, config, others)
        check_effect(detector, others, PROTOCOLS)
        loaded.append((source, trained, detector, settings))
    subjects = []
    for source, trained, detector, settings in loaded:
        evaluation, store = evaluate_detector(detector, settings, class_map=class_map, classes=classes)
        evaluation = replace(evaluation, notes=(*describe_overrides(overrides), *evaluation.notes))
        limit, run = settings.eval.max_detections, read_run(Path(source), trained) if trained else None
        analysis = analyse(store, limit)
        subjects.append(
            Subject(str(source), store, evaluation, analysis, max_detections=limit, run=run, config=settings)
        )
    return subjects


def subject_of_results(results: Results) -> Subject:
    """Detections of another tool; see `detkit.engine.foreign_results`."""
    evaluation = evaluate_results(results)
    limit = results.settings.max_detections
    analysis = analyse(results.store, limit)
    return Subject(results.name, results.store, evaluation, analysis, results.data, limit)

"""Measures, compares, examines and writes the page: what `detkit report` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detkit.config import UserError
from detkit.engine.run_folder import create_folder
from detkit.evaluation.comparison import compare_detectors
from detkit.files import write_text
from detkit.inspect.report.page import render
from detkit.inspect.report.subject import Subject


def check_output(path: Path) -> None:
    """Makes the folder of `path`. Raises UserError if no file can be written there: rather now than after the work."""
    if path.is_dir():
        raise UserError(f"--output {path}: expected a file, such as report.html, found a folder; name a file in it")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {path}: expected a name that ends in .html, as browsers go by it")
    create_folder(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"--output {path}: this file is not writable; choose another")


def write_report(subjects: Sequence[Subject], path: Path, *, doctor: bool = True) -> None:
    """Writes the page of one subject, or of two on the same data with their comparison.

    doctor  also what is wrong with the data of the first, if it has a configuration
    """
    comparison = None
    if len(subjects) == 2:
        comparison = compare_detectors(subjects[0].store, subjects[1].store, max_detections=subjects[0].max_detections)
    config, diagnosis = subjects[0].config, None
    if doctor and config:
        from detkit.inspect.doctor.diagnose import diagnose

        diagnosis = diagnose(config, store=subjects[0].store)
    write_text(path, render(subjects, comparison, diagnosis))

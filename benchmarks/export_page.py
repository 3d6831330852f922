"""The page of the export report: what it says of each row, as text."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from detkit.export.report import Report
from detkit.export.report_text import Matches

FORMATS = {".onnx": "ONNX", ".pt2": "torch.export"}
PACKAGES = ("torch", "torchvision", "transformers", "onnxruntime")
NONE = "-"
HEADING = """\
Each detector is exported as ONNX and by torch.export, and both files run beside PyTorch in float32 on the same 16
pictures: of the validation data for a configuration, drawn ones for public detectors.

* **difference**: the largest of all outputs of the network, as abs(file - PyTorch) / max(1, abs(PyTorch)); the bar is
  1e-4. Where a suppression chooses regions, the outputs of each are compared with those of the same region in the file;
  *stray* regions have none.
* **matched**: how many detections of PyTorch and of the file with a score above 0.05 have a counterpart on the other
  side (same class, IoU > 0.99, scores within 1e-3), of how many on both sides; the bar is 100 %. One whose score is
  within 1e-3 of 0.05, or of the last one in a full list, is *excused* from having one.
* **batches**, **canvases**: how many pictures at once, and images of which size (h x w px), both files were given.
* **weights**: *trained* as the configuration says, *real* ones of a publisher, or *random*. Plain random weights give
  every place of a picture nearly the same score, so that rounding decides what a suppression leaves. The random ones
  here are spread: from a fixed seed, norms have the statistics of four of the pictures and a bias of 1, and the last
  layers are scaled so that logits have a standard deviation of 2, and deltas of 0.2, over these pictures, and that most
  places are background (`benchmarks/random_weights.py`)."""
OWN_HEADING = """\
The model of torchvision, for DETR of transformers, as it comes and with the weights of the row above: whether torch
exports it for one picture of 480 x 640 px with nothing dynamic, and for ONNX whether onnxruntime also runs the file. An
error is given by its class and its first sentence."""


@dataclass
class Row:
    """
    reports   of each format that could be exported, by its suffix
    own       what torch.export and torch.onnx make of the publisher's own model; empty: there is none
    problems  why the row misses the bar
    """

    name: str
    weights: str = ""
    reports: dict[str, Report] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)


def page(rows: Sequence[Row]) -> str:
    missed = [f"* {row.name}: {_plain(problem)}" for row in rows for problem in row.problems]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    parts = [
        "# What the exported files do",
        f"Written by `make export-report` on {datetime.date.today()}, with {versions}. Do not edit.",
        HEADING,
        _exports_table(rows),
        "\n".join(["Rows that miss the bar:", "", *missed]) if missed else "No row misses the bar.",
        "## What torch makes of the publishers' own models",
        OWN_HEADING,
        _table(
            ("model", "`torch.export.export`", "`torch.onnx.export(dynamo=True)`"),
            ((row.name, *map(_plain, row.own)) for row in rows if row.own),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _exports_table(rows: Sequence[Row]) -> str:
    columns = ("difference", "matched", "MiB")
    head = [f"{format}: {column}" for format in FORMATS.values() for column in columns]
    lines = []
    for row in rows:
        cells = [cell for suffix in FORMATS for cell in _numbers(row.reports.get(suffix))]
        lines.append((row.name, row.weights or NONE, *cells, *_inputs(list(row.reports.values()))))
    return _table(("detector", "weights", *head, "batches", "canvases"), lines)


def _numbers(report: Report | None) -> tuple[str, str, str]:
    if report is None:
        return NONE, NONE, NONE
    difference = f"{max(report.raw_differences.values(), default=math.nan):.0e}"
    if report.stray_regions:
        difference += f", {report.stray_regions} of {2 * report.regions + report.stray_regions} regions stray"
    matched = matched_share(report.matches) if report.matches else NONE
    return difference, matched, f"{report.mebibytes:.1f}"


def matched_share(matches: Matches) -> str:
    """The share is never rounded up to 100 %."""
    total = matches.torch + matches.file
    percent = math.floor(10_000 * (1 - matches.unmatched_share)) / 100 if matches.unmatched else 100
    return f"{percent:g} % of {total:,}" + (f", {matches.excused} excused" if matches.excused else "")


def _inputs(reports: Sequence[Report]) -> tuple[str, str]:
    """What all files of a row were given; canvases as the smallest and the largest of them."""
    if not reports:
        return NONE, NONE
    batches = sorted(set.intersection(*(set(report.batch_sizes) for report in reports)))
    canvases = sorted(set.intersection(*(set(report.canvases) for report in reports)))
    sides = [f"{height} x {width}" for height, width in canvases]
    return ", ".join(map(str, batches)), ", ".join(sides if len(sides) < 4 else (sides[0], "...", sides[-1]))


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _plain(text: str) -> str:
    """Without what Markdown reads as its own."""
    for character in "\\`*_|<>[]":
        text = text.replace(character, f"\\{character}")
    return text

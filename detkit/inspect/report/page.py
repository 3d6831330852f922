"""The page: subjects, their comparison and the doctor's findings as one HTML file without anything beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import detkit
from detkit.evaluation.analysis import IOU_THRESHOLDS, SIZES
from detkit.evaluation.comparison import Comparison, Interval
from detkit.evaluation.protocols import Protocol
from detkit.inspect.doctor.findings import Diagnosis
from detkit.inspect.report.charts import Chart
from detkit.inspect.report.numbers import (
    ClassRow,
    ConfusionTable,
    ErrorRow,
    calibration_chart,
    class_rows,
    confusion_table,
    curve_charts,
    error_rows,
)
from detkit.inspect.report.pictures import BUDGET, Card, PictureBook, Scene, example_cards
from detkit.inspect.report.subject import Subject

PACKAGE = "detkit.inspect.report"
NO_NUMBER = "\N{EN DASH}"
PROTOCOL_TITLES: dict[Protocol, str] = {
    "voc07": "VOC 2007",
    "voc10": "VOC 2010",
    "coco": "COCO",
    "coco_segm": "COCO masks",
    "coco_keypoints": "COCO keypoints",
    "tubes": "Tubes",
}
MAX_FLIPPED = 12  # pictures shown that the second detector does better, and as many that it does worse


@dataclass(frozen=True, eq=False)
class Panel:
    """What the page shows of one subject. `key` is the head of its ids on the page."""

    key: str
    subject: Subject
    rows: Sequence[ClassRow]
    precision: Chart
    f1: Chart
    calibration: Chart
    confusion: ConfusionTable
    errors: Sequence[ErrorRow]
    cards: Sequence[Card]

    @property
    def available(self) -> dict[str, int]:
        """How many examples of each kind there are, shown or not."""
        analysis = self.subject.analysis
        examples = (analysis.false_positives, analysis.missed, analysis.loose)
        return dict(zip(("false-positive", "missed", "loose"), map(len, examples), strict=True))


@dataclass(frozen=True)
class Flip:
    """A picture as both detectors see it; `gain` objects that only the second detects, less those of the first."""

    first: Scene
    second: Scene
    gain: int


@dataclass(frozen=True)
class IntervalBar:
    """An interval in percent of the width of its column; `zero` is where there is no difference."""

    left: float
    width: float
    middle: float
    zero: float


def render(
    subjects: Sequence[Subject], comparison: Comparison | None = None, diagnosis: Diagnosis | None = None
) -> str:
    """The HTML of one subject, or of two with their comparison."""
    book = PictureBook()
    flips = _flips(book, subjects, comparison) if comparison else []
    panels = [_panel(book, number, subject, len(subjects)) for number, subject in enumerate(subjects)]
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=" and ".join(subject.name for subject in subjects),
            version=detkit.__version__,
            created=datetime.now().strftime("%d %B %Y, %H:%M"),
            css=_inline("page.css"),
            js=_inline("page.js"),
            panels=panels,
            comparison=comparison,
            bars=interval_bars(comparison.per_class) if comparison else {},
            flips=flips,
            diagnosis=diagnosis,
            book=book,
            ious=[f"{iou:.2f}" for iou in IOU_THRESHOLDS],
            sizes=SIZES,
            protocol_titles=PROTOCOL_TITLES,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, sort_value=sort_value)
    return environment


def format_number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """`0.123`; a dash for nan and None."""
    if value is None or math.isnan(value):
        return NO_NUMBER
    return f"{value:{'+' if sign else ''}.{digits}f}"


def sort_value(value: float | None) -> str:
    """What a column is sorted by; empty, and so last, for nan and None."""
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def interval_bars(intervals: dict[str, Interval]) -> dict[str, IntervalBar]:
    """Bars of all intervals on one scale, by name; none where there is no number."""
    finite = {name: it for name, it in intervals.items() if np.isfinite([it.low, it.value, it.high]).all()}
    low = min([0.0, *(interval.low for interval in finite.values())])
    high = max([0.0, *(interval.high for interval in finite.values())])
    span = (high - low) or 1.0
    return {
        name: IntervalBar(
            left=100 * (interval.low - low) / span,
            width=100 * (interval.high - interval.low) / span,
            middle=100 * (interval.value - low) / span,
            zero=-100 * low / span,
        )
        for name, interval in finite.items()
    }


def _panel(book: PictureBook, number: int, subject: Subject, of: int) -> Panel:
    analysis, store = subject.analysis, subject.store
    precision, f1 = curve_charts(analysis)
    book.limit = BUDGET * (number + 1) // of  # so that the first one leaves room to the second
    return Panel(
        key=f"d{number + 1}",
        subject=subject,
        rows=class_rows(analysis, subject.evaluation),
        precision=precision,
        f1=f1,
        calibration=calibration_chart(analysis),
        confusion=confusion_table(analysis.confusion, store.categories.names),
        errors=error_rows(analysis.errors),
        cards=example_cards(book, number, store, analysis),
    )


def _flips(book: PictureBook, subjects: Sequence[Subject], comparison: Comparison) -> list[Flip]:
    """The pictures that changed most, best gains first and worst losses last."""
    order = np.argsort(-comparison.gains, kind="stable")
    gained = [int(image) for image in order[:MAX_FLIPPED] if comparison.gains[image] > 0]
    lost = [int(image) for image in order[-MAX_FLIPPED:] if comparison.gains[image] < 0]
    stores, flips = [subject.store for subject in subjects], []
    place = {image.image_id: index for index, image in enumerate(stores[1].ground_truth)}
    for image in gained + lost:
        first = book.scene(0, stores[0], image)
        second = book.scene(1, stores[1], place[stores[0].ground_truth[image].image_id])
        if first and second:
            flips.append(Flip(first, second, int(comparison.gains[image])))
    return flips


def _inline(name: str) -> Markup:
    return Markup(files(PACKAGE).joinpath(name).read_text(encoding="utf-8"))

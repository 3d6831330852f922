"""Rows and tables of the page, by hand."""

import math

import numpy as np
import pytest

from detkit.evaluation.analysis import Confusion
from detkit.evaluation.comparison import Interval
from detkit.evaluation.store import DetectionStore
from detkit.inspect.report.numbers import MAX_CONFUSED, class_rows, confusion_table, error_rows
from detkit.inspect.report.page import format_number, interval_bars, sort_value
from detkit.structures import Categories, GroundTruth
from tests.inspect.report.scenes import found, objects, random_store, subject


def test_the_best_threshold_of_a_class_by_hand() -> None:
    """Hit 0.9, wrong 0.8, hit 0.7, wrong 0.6 of two objects: F1 is 2/3, 1/2, 4/5, 2/3, so 0.7 with precision 2/3."""
    categories = Categories.of_names(["a", "never"])
    truth = objects([(0, 0, 20, 20), (50, 0, 70, 20)], [0, 0])
    store = DetectionStore(categories, [GroundTruth(1, (100, 100), truth)])
    boxes = [(0, 0, 20, 20), (0, 60, 20, 80), (50, 0, 70, 20), (50, 60, 70, 80)]
    store.update(1, found(categories, boxes, [0] * 4, [0.9, 0.8, 0.7, 0.6]))
    one = subject(store)
    row, absent = class_rows(one.analysis, one.evaluation)
    assert (row.name, row.objects) == ("a", 2)
    assert [row.threshold, row.f1, row.precision, row.recall] == pytest.approx([0.7, 4 / 5, 2 / 3, 1])
    assert row.ap == pytest.approx(one.evaluation.results["coco"].per_class["a"])
    assert math.isnan(absent.ap)
    assert math.isnan(absent.threshold)


def test_a_class_that_is_never_detected_has_no_threshold() -> None:
    categories = Categories.of_names(["a"])
    store = DetectionStore(categories, [GroundTruth(1, (100, 100), objects([(0, 0, 20, 20)], [0]))])
    store.update(1, found(categories))
    one = subject(store)
    (row,) = class_rows(one.analysis, one.evaluation)
    assert row.ap == 0
    assert math.isnan(row.threshold)


def test_confusions_as_shares_of_their_row_and_the_most_frequent_pairs() -> None:
    counts = np.array([[6, 3, 1], [0, 5, 5], [2, 0, 0]])
    table = confusion_table(Confusion(counts, 0.5, 0.5), ["cat", "dog"])
    assert table.names == ["cat", "dog", "background"]
    assert table.cells[0] == [(6, 0.6), (3, 0.3), (1, 0.1)]
    assert table.cells[2] == [(2, 1.0), (0, 0.0), (0, 0.0)]
    assert table.pairs == [("cat", "dog", 3)], "misses and background are no confusion of two classes"
    assert table.omitted == 0


def test_of_very_many_classes_those_that_are_confused_least_are_left_out() -> None:
    num_classes = MAX_CONFUSED + 20
    counts = np.diag(np.full(num_classes + 1, 50))
    counts[7, 9] = 4
    counts[np.arange(30, num_classes), -1] = 1
    table = confusion_table(Confusion(counts, 0.5, 0.5), [f"c{label}" for label in range(num_classes)])
    assert len(table.names) == MAX_CONFUSED + 1
    assert table.omitted == 20
    assert {"c7", "c9", "c119", "background"} <= set(table.names)
    assert list(table.names[:-1]) == sorted(table.names[:-1], key=lambda name: int(name[1:])), (
        "in the order of the data"
    )


def test_every_kind_of_error_has_its_cost() -> None:
    errors = subject(random_store(20)).analysis.errors
    rows = {row.kind: row for row in error_rows(errors)}
    assert {kind: row.cost for kind, row in rows.items() if row.count is not None} == errors.costs
    assert rows["all missed objects"].cost == errors.false_negatives


def test_numbers_as_text() -> None:
    assert format_number(0.12345) == "0.123"
    assert format_number(0.5, 2, sign=True) == "+0.50"
    assert format_number(float("nan")) == format_number(None) == "\N{EN DASH}"
    assert (sort_value(0.25), sort_value(None), sort_value(float("nan"))) == ("0.25", "", "")


def test_bars_of_intervals_share_a_scale_that_holds_zero() -> None:
    bars = interval_bars(
        {
            "better": Interval(0.2, 0.1, 0.3),
            "worse": Interval(-0.05, -0.1, 0.0),
            "absent": Interval(math.nan, math.nan, math.nan),
        }
    )
    assert set(bars) == {"better", "worse"}
    better = bars["better"]  # from -0.1 to 0.3: zero is at a quarter
    assert [better.zero, better.left, better.middle, better.width] == pytest.approx([25, 50, 75, 50])
    assert interval_bars({"better": Interval(0.2, 0.1, 0.3)})["better"].left == pytest.approx(100 / 3)
    assert interval_bars({"same": Interval(0, 0, 0)})["same"].zero == 0

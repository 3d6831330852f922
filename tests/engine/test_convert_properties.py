"""Boxes of any place and class: what one format is converted to comes back from each of the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detkit.engine.convert import convert
from detkit.engine.convert_source import read_source
from tests.engine.test_convert import CLASSES, coco_set

few = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
Row = tuple[int, list[float], bool]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Class, xywh in hundredths of a pixel within 60 x 40, more than 1 px wide and high, as VOC has it; no crowd."""
    x, y = draw(st.integers(0, 5000)), draw(st.integers(0, 3000))
    width, height = draw(st.integers(200, 6000 - x)), draw(st.integers(200, 4000 - y))
    return draw(st.integers(0, len(CLASSES) - 1)), [value / 100 for value in (x, y, width, height)], False


@pytest.mark.parametrize("to", ["voc", "yolo", "coco"])
@few
@given(first=st.lists(rows(), min_size=1, max_size=4), second=st.lists(rows(), max_size=2))
def test_boxes_come_back(to: str, first: list[Row], second: list[Row], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.rmtree(folder, ignore_errors=True)
    coco_set(folder / "coco", {"train": {"a.jpg": first, "b.jpg": second}})
    convert(folder / "coco", folder / "there", to)
    convert(folder / "there", folder / "back", "coco")
    for name in ("there", "back"):
        source = read_source(folder / name, None, "raise")
        assert source.categories.names == tuple(CLASSES)
        dataset = source.splits["train"]
        for index, expected in enumerate((first, second)):
            objects = dataset.ground_truth(index).objects
            # The same line twice is one object in YOLO's files.
            kept = list({(label, *box): None for label, box, _ in expected}) if to == "yolo" else None
            pairs = kept or [(label, *box) for label, box, _ in expected]
            assert objects.labels.tolist() == [pair[0] for pair in pairs]
            boxes = np.array([[x, y, x + w, y + h] for _, x, y, w, h in pairs]).reshape(-1, 4)
            np.testing.assert_allclose(objects.boxes, boxes, rtol=0, atol=2e-3)

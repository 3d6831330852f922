"""What an exported file says of itself is read back as it was, or refused in one sentence."""

from __future__ import annotations

import json

import pytest

import detkit
from detkit.config import UserError
from detkit.export.export import describe
from detkit.export.metadata import Metadata, parse_metadata
from detkit.export.program import Form, complete_form
from detkit.structures import Categories
from tests.export.detectors import Proposed


@pytest.fixture
def metadata() -> Metadata:
    detector = Proposed("letterbox")
    detector.categories = Categories(("cat", "dög", "person"), (7, 1, 90))
    return describe(detector, complete_form(Form(batch=2), detector), None, "CC-BY")


def test_nothing_is_lost(metadata: Metadata) -> None:
    again = parse_metadata(metadata.to_text(), "a.onnx")
    assert again == metadata
    assert again.categories == Categories(("cat", "dög", "person"), (7, 1, 90))
    assert (again.version, again.detector, again.licence) == (detkit.__version__, "Proposed", "CC-BY")
    assert (again.batch, again.canvas, again.stride) == (2, (64, 64), 8)
    assert again.outputs == ("boxes", "scores", "labels", "counts")


def test_it_is_plain_json(metadata: Metadata) -> None:
    tree = json.loads(metadata.to_text())
    assert tree["classes"]["names"] == ["cat", "dög", "person"]
    assert tree["input"]["resize"]["name"] == "letterbox"
    assert tree["input"]["std"] == [255, 255, 255]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "detkit export 2"}, "(1 difference, the first at format)"),
        ({"format": "detkit export 2", "precision": "int4"}, "(2 differences, the first at format)"),
        ({"new": 1}, "(1 difference, the first at new)"),
        ({"input": {"resize": {"name": "tile"}}}, "(1 difference, the first at input.resize)"),
        ({"classes": {"names": ["cat"]}}, "(1 difference, the first at classes)"),
        ({"classes": {"names": [], "ids": []}}, "(1 difference, the first at classes)"),
        ({"classes": {"names": "cat", "ids": "1"}}, "(1 difference, the first at classes)"),
    ],
)
def test_metadata_of_another_version(metadata: Metadata, change: dict[str, object], words: str) -> None:
    text = json.dumps({**json.loads(metadata.to_text()), **change})
    with pytest.raises(UserError) as error:
        parse_metadata(text, "a.onnx")
    assert str(error.value).startswith("a.onnx: its metadata are not those of this version of detkit")
    assert words in str(error.value)
    assert "export the detector again" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "hello", "[]", "{", "null"])
def test_metadata_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"^a.onnx: its metadata are not those of this version"):
        parse_metadata(text, "a.onnx")


def test_a_file_without_metadata() -> None:
    with pytest.raises(UserError, match=r"^a.onnx: not a file that detkit exported: it has no metadata under 'detkit'"):
        parse_metadata(None, "a.onnx")

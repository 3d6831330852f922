"""The programs in examples/ run in a process without detkit, and detect what detkit detects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import onnx
import pytest
import torch

import detkit
from detkit.detectors.detector import Detector
from detkit.export.graph import DETECTIONS, Whole
from detkit.export.metadata import KEY
from detkit.export.program import Form
from detkit.nn.selection import DetectionRows
from detkit.structures import Detections, ImageInfo, Size
from tests.detectors.batches import ROOT
from tests.export.detectors import CellOutputs, Cells, random_pictures, write_exported

BLOCKED = "import sys; sys.modules['detkit'] = None; sys.argv = sys.argv[1:]; exec(open(sys.argv[0]).read())"


def lines_of(example: str, file: Path, picture: Path) -> list[list[str]]:
    """What an example prints, in words; an import of detkit would fail."""
    arguments = [sys.executable, "-c", BLOCKED, str(ROOT / "examples" / example), str(file), str(picture)]
    done = subprocess.run(arguments, cwd=picture.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return [line.split() for line in done.stdout.splitlines()]


def assert_printed(lines: list[list[str]], expected: Detections) -> None:
    assert len(expected) > 5
    assert len(lines) == len(expected)
    for (name, score, *box), label, other, corners in zip(
        lines, expected.labels, expected.scores, expected.boxes, strict=True
    ):
        assert name == expected.categories.names[label]
        assert float(score) == pytest.approx(float(other), abs=1e-4)
        assert [float(side) for side in box] == pytest.approx(corners.tolist(), abs=0.02)


@pytest.mark.parametrize(
    "rule",
    ["letterbox", "short_side", *(pytest.param(rule, marks=pytest.mark.long) for rule in ("stretch", "keep"))],
)
def test_onnx_numpy(rule: str, tmp_path: Path) -> None:
    file = write_exported(Cells(rule), tmp_path / "model.onnx")
    for number, size in enumerate(((50, 70), (90, 41))):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), random_pictures(size)[0])
        (expected,) = detkit.predict(Cells(rule), path)
        assert_printed(lines_of("onnx_numpy.py", file, path), expected)


@pytest.mark.long
def test_onnx_numpy_says_what_it_cannot_run(tmp_path: Path) -> None:
    picture, foreign = tmp_path / "a.png", tmp_path / "foreign.onnx"
    cv2.imwrite(str(picture), random_pictures((50, 70))[0])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    exact = {"pictures": "exact", "raw": False, "proposals": None}
    for metadata, shown, message in (
        (None, picture, "not a file of `detkit export`: it has no metadata"),
        ({**exact, "pictures": "resize"}, picture, "is for a file without --input resize, --raw and proposals"),
        (exact, foreign, "no picture that OpenCV reads"),
    ):
        if metadata:
            onnx.helper.set_model_props(model, {KEY: json.dumps(metadata)})
        onnx.save(model, foreign)
        command = [sys.executable, str(ROOT / "examples/onnx_numpy.py"), str(foreign), str(shown)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert message in done.stderr


@torch.inference_mode()
def resized_by_the_file(detector: Detector[CellOutputs], picture: Path) -> Detections:
    image = torch.from_numpy(cv2.imread(str(picture), cv2.IMREAD_COLOR_RGB)).permute(2, 0, 1)
    rows = Whole(detector, "resize")(image[None])
    info = ImageInfo(0, (99, 99), (99, 99), (1.0, 1.0))
    return DetectionRows(*(rows[name] for name in DETECTIONS)).to_detections([info], detector.categories)[0]


@pytest.mark.parametrize(
    ("example", "suffix", "rule", "size"),
    [
        ("openvino_resize.py", ".xml", "letterbox", (50, 70)),
        ("torch_export_resize.py", ".pt2", "keep", (24, 17)),  # with fewer detections than rows
    ],
)
def test_files_that_resize(example: str, suffix: str, rule: str, size: Size, tmp_path: Path) -> None:
    detector, picture = Cells(rule), tmp_path / "picture.png"
    cv2.imwrite(str(picture), random_pictures(size)[0])
    file = write_exported(detector, tmp_path / f"model{suffix}", Form("resize"))
    assert_printed(lines_of(example, file, picture), resized_by_the_file(detector, picture))


def test_each_example_is_described_and_short() -> None:
    page = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f"]({path.name})" in page
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 45

"""Exported files as others see them: onnx alone, OpenVINO alone, torch alone; and what happens when none is written."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import detkit
from detkit.config import UserError
from detkit.engine.predict import predict
from detkit.export.export import describe
from detkit.export.files import (
    format_of,
    require_extra,
    require_packages,
    take_outputs,
    write_onnx,
    write_openvino,
    write_torch_export,
)
from detkit.export.graph import DETECTIONS
from detkit.export.program import Form, complete_form, export_program
from tests.export.detectors import Cells, random_pictures

Exported = Callable[..., Path]


def test_the_suffix_says_the_format() -> None:
    assert format_of(Path("a/b.onnx")) == "onnx"
    assert format_of(Path("b.ONNX")) == "onnx"
    assert format_of(Path("b.pt2")) == "torch_export"
    assert format_of(Path("b.c.xml")) == "openvino"
    for name, suffix in (("b.pt", ".pt"), ("b", "none"), ("a.onnx/b.tflite", ".tflite"), (".onnx", "none")):
        with pytest.raises(UserError, match=rf"{re.escape(name)}: .*expected .onnx \(onnx\), .*found '{suffix}'"):
            format_of(Path(name))


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"openvino", "onnxscript"}
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find_spec(name))
    with pytest.raises(
        UserError, match=r"^to write and run ONNX files, onnxscript must be installed: pip .*'.\[export\]'$"
    ):
        require_packages("onnx")
    absent.remove("onnxscript")
    require_packages("onnx")
    with pytest.raises(UserError, match=r"OpenVINO files, openvino must be installed: pip install -e '.\[openvino\]'$"):
        require_packages("openvino")
    absent |= {"onnx", "onnxruntime"}
    with pytest.raises(UserError, match=r"onnx and onnxruntime must be installed: pip install -e '.\[export\]'$"):
        require_packages("openvino")
    require_packages("torch_export")


def test_the_extras_are_those_of_the_package() -> None:
    text = (Path(detkit.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ("export", "openvino"):
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE)
        require_extra(extra)


# ---- as others see them


def shape_of(value: Any) -> list[Any]:
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]


def test_an_onnx_file_is_plain_onnx(exported: Exported) -> None:
    path = exported(".onnx", "letterbox")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {(entry.domain, entry.version) for entry in model.opset_import if entry.domain == ""} == {("", 21)}
    assert {node.domain for node in model.graph.node} == {""}, "operators that not every runtime knows"
    assert not model.functions
    inputs = {value.name: (value.type.tensor_type.elem_type, shape_of(value)) for value in model.graph.input}
    uint8, int64, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    assert inputs == {
        "images": (uint8, ["batch", 3, 64, 64]),
        "sizes": (int64, ["batch", 2]),
        "original_sizes": (int64, ["batch", 2]),
    }
    outputs = {value.name: (value.type.tensor_type.elem_type, shape_of(value)) for value in model.graph.output}
    assert list(outputs) == list(DETECTIONS)
    assert outputs == {
        "boxes": (float32, ["batch", 20, 4]),
        "scores": (float32, ["batch", 20]),
        "labels": (int64, ["batch", 20]),
        "counts": (int64, ["batch"]),
    }
    assert [path.name] == sorted(os.listdir(path.parent)), "the weights are in the file, none lies beside it"


def test_what_a_file_says_of_itself_is_read_by_onnx_alone(exported: Exported) -> None:
    (entry,) = (e for e in onnx.load(exported(".onnx", "letterbox")).metadata_props if e.key == "detkit")
    metadata = json.loads(entry.value)
    assert metadata["classes"] == {"names": ["red", "green", "blue"], "ids": [1, 2, 3]}
    assert metadata["input"]["resize"]["name"] == "letterbox"
    assert metadata["licence"] == "none"
    assert metadata["version"] == detkit.__version__
    assert metadata["outputs"] == list(DETECTIONS)


def test_an_onnx_file_has_sides_that_may_change_and_fixed_ones(exported: Exported) -> None:
    images = onnx.load(exported(".onnx", "short_side")).graph.input[0]
    assert shape_of(images) == ["batch", 3, "height", "width"]
    raw = onnx.load(exported(".onnx", "short_side", raw=True)).graph
    assert {value.name: shape_of(value) for value in (*raw.input, *raw.output)} == {
        "images": [1, 3, 48, 72],
        "sizes": [1, 2],
        "raw.logits": [1, 3, 6, 9],
    }
    assert not {node.op_type for node in raw.node} & {"NonMaxSuppression", "TopK", "NonZero"}


def test_outputs_that_are_taken_leave_the_others_behind(tmp_path: Path) -> None:
    detector = Cells()
    form = complete_form(Form(), detector)
    complete = describe(detector, form, None, "none").model_copy(update={"outputs": (*DETECTIONS, "raw.logits")})
    write_onnx(export_program(detector, form, raw_too=True), complete, tmp_path / "complete.onnx")
    assert [value.name for value in onnx.load(tmp_path / "complete.onnx").graph.output] == list(complete.outputs)
    boxes = complete.model_copy(update={"outputs": ("boxes",), "licence": "CC0"})
    take_outputs(tmp_path / "complete.onnx", boxes, tmp_path / "boxes.onnx")
    logits = complete.model_copy(update={"outputs": ("raw.logits",)})
    take_outputs(tmp_path / "complete.onnx", logits, tmp_path / "logits.onnx")
    model = onnx.load(tmp_path / "boxes.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == ["boxes"]
    assert [json.loads(entry.value)["licence"] for entry in model.metadata_props] == ["CC0"]
    rest = onnx.load(tmp_path / "logits.onnx").graph
    assert "NonMaxSuppression" in {node.op_type for node in model.graph.node}
    assert "NonMaxSuppression" not in {node.op_type for node in rest.node}
    assert len(rest.initializer) < len(model.graph.initializer)


def test_an_output_that_is_a_constant_is_taken(tmp_path: Path) -> None:
    """SSD's priors are one: they depend on nothing where the size is fixed."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    priors = onnx.helper.make_tensor_value_info("priors", onnx.TensorProto.FLOAT, [2])
    constant = onnx.numpy_helper.from_array(np.array([3.0, 4.0], np.float32), "priors")
    add = onnx.helper.make_node("Add", ["x", "priors"], ["y"])
    for nodes, outputs in (([add], (y, priors)), ([onnx.helper.make_node("Neg", ["x"], ["y"])], (y, priors))):
        graph = onnx.helper.make_graph(nodes, "constant", [x], outputs, [constant])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(model, tmp_path / "complete.onnx")
        metadata = describe(Cells(), Form(), None, "none").model_copy(update={"outputs": ("y", "priors")})
        take_outputs(tmp_path / "complete.onnx", metadata, tmp_path / "taken.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "taken.onnx")
        assert session.run(["priors"], {"x": np.ones(2, np.float32)})[0].tolist() == [3.0, 4.0]


def test_an_openvino_file_is_read_by_openvino_alone(exported: Exported) -> None:
    import openvino

    path = exported(".xml", "letterbox")
    model = openvino.Core().read_model(path)
    assert [value.any_name for value in model.inputs] == ["images", "sizes", "original_sizes"]
    assert [value.any_name for value in model.outputs] == list(DETECTIONS)
    assert model.inputs[0].partial_shape.to_string() == "[?,3,64,64]"
    assert model.inputs[0].element_type == openvino.Type.u8
    assert json.loads(model.get_rt_info("detkit").astype(str))["classes"]["names"] == ["red", "green", "blue"]


def test_writing_openvino_tells_nobody(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    def tell(*_: object, **__: object) -> None:
        raise AssertionError("openvino.convert_model sends statistics of use over the network")

    monkeypatch.setattr(openvino, "convert_model", tell)
    write_openvino(exported(".onnx", "letterbox"), describe(Cells(), Form(), None, "none"), tmp_path / "model.xml")


def test_a_torch_export_file_runs_without_detkit(exported: Exported, tmp_path: Path) -> None:
    path = exported(".pt2", "letterbox")
    (picture,) = random_pictures((64, 64))
    np.save(tmp_path / "picture.npy", picture.transpose(2, 0, 1)[None])
    (tmp_path / "run.py").write_text(
        "import json, sys\n"
        "import numpy, torch, torchvision\n"
        "texts = {'detkit': ''}\n"
        f"module = torch.export.load({str(path)!r}, extra_files=texts).module()\n"
        "images, size = torch.from_numpy(numpy.load('picture.npy')), torch.tensor([[64, 64]])\n"
        "outputs = module(images=images, sizes=size, original_sizes=size)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'detkit']\n"
        "assert json.loads(texts['detkit'])['classes']['names'] == ['red', 'green', 'blue']\n"
        "print(json.dumps({name: value.tolist() for name, value in outputs.items()}))\n"
    )
    done = subprocess.run([sys.executable, "-I", "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = {name: torch.tensor(value) for name, value in json.loads(done.stdout).items()}
    (expected,) = predict(Cells("letterbox"), [picture])
    assert outputs["counts"].tolist() == [len(expected)]
    assert len(expected) > 5
    torch.testing.assert_close(outputs["boxes"][0, : len(expected)], expected.boxes)
    torch.testing.assert_close(outputs["scores"][0, : len(expected)], expected.scores)
    assert outputs["labels"][0, : len(expected)].tolist() == expected.labels.tolist()


# ---- a file that cannot be written


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device here that is always full")
def test_a_disk_that_is_full(exported: Exported, tmp_path: Path) -> None:
    """Each library writes in a way of its own: torch's ended the process, OpenVINO's raises no OSError."""
    source, metadata = exported(".onnx", "letterbox"), describe(Cells(), complete_form(Form(), Cells()), None, "none")
    program = export_program(Cells(), complete_form(Form(), Cells()))
    cannot = "cannot write: No space left on device$"
    for name, write, message in (
        ("model.pt2", lambda path: write_torch_export(program, metadata, path), cannot),
        ("model.onnx", lambda path: take_outputs(source, metadata, path), cannot),
        ("whole.onnx", lambda path: write_onnx(program, metadata, path), cannot),
        ("model.xml", lambda path: write_openvino(source, metadata, path), "OpenVINO cannot write .* is there space"),
        ("model.bin", lambda path: write_openvino(source, metadata, path.with_suffix(".xml")), "OpenVINO cannot write"),
    ):
        (tmp_path / name).symlink_to("/dev/full")
        with pytest.raises(UserError, match=message):
            write(tmp_path / name)
        (tmp_path / name).unlink(missing_ok=True)  # OpenVINO has removed its own

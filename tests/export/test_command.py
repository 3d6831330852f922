"""`detkit export`, and what the other commands do with its files."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import onnx
import pytest

import detkit
from detkit import cli
from detkit.export import export
from detkit.export.runtime import open_runner
from tests.cli_support import FAST, train_tiny
from tests.data.writers import voc_object, write_voc
from tests.detectors.batches import ROOT
from tests.export.detectors import random_pictures
from tests.export.test_runtime import write_bare

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as an ONNX file in a folder of its own, which did not exist before."""
    path = tmp_path_factory.mktemp("command") / "deep" / "model.onnx"
    assert cli.export([str(run), "--output", str(path), "--licence", "CC0"]) == 0
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`refused(tool, *arguments)`: the one line of a call that must end with status 2; it is made in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def call(tool: Callable[[Sequence[str]], int], *arguments: object) -> str:
        capsys.readouterr()
        assert tool([str(argument) for argument in arguments]) == 2
        err = capsys.readouterr().err
        messages = re.findall(r"(?:^|[\r\n])error: (.*)", err)
        assert len(messages) == 1, err
        assert err.endswith(f"error: {messages[0]}\n")
        assert "Traceback" not in err
        return str(messages[0])

    return call


def detections_of(source: Path, folder: Path, *options: str) -> list[dict[str, Any]]:
    """What `detkit eval` detects on the validation data."""
    assert cli.evaluate([str(source), "--save-detections", str(folder / "out.json"), *options]) == 0
    return list(json.loads((folder / "out.json").read_text()))


def assert_same_detections(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(expected) > 5
    for one, other in zip(found, expected, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


# ---- what it writes


def test_a_file_and_its_report_and_nothing_else(model: Path, run: Path) -> None:
    assert sorted(os.listdir(model.parent)) == ["model.onnx", "model.onnx.report.json"]
    assert not json.loads(model.with_name("model.onnx.report.json").read_text())["problems"]
    onnx.checker.check_model(onnx.load(model), full_check=True)
    metadata = open_runner(model)[1]
    assert metadata.detector == "SSD"
    assert metadata.licence == "CC0"
    assert metadata.categories.names == detkit.load(run).categories.names
    assert metadata.configuration is not None
    assert "lenet5" in metadata.configuration


def test_eval_takes_the_data_from_the_file(model: Path, run: Path, tmp_path: Path) -> None:
    expected = detections_of(run, tmp_path)
    assert_same_detections(detections_of(model, tmp_path), expected)
    config = run.with_name("tiny.yaml")
    assert_same_detections(detections_of(model, tmp_path, "--config", str(config)), expected)
    assert_same_detections(detections_of(model, tmp_path, "--set", "eval.batch_size=2"), expected)


def test_predict_draws_and_writes_the_same(model: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name, picture in zip("ab", random_pictures((50, 70), (90, 40)), strict=True):
        cv2.imwrite(str(tmp_path / f"photos/{name}.png"), picture)
    contents = []
    for source, output in ((model, "file"), (run, "run")):
        assert cli.predict([str(source), str(tmp_path / "photos"), "--output", str(tmp_path / output)]) == 0
        contents.append(json.loads((tmp_path / output / "detections.json").read_text()))
        assert cv2.imread(str(tmp_path / output / "a.png")).shape == (50, 70, 3)
    for one, other in zip(*contents, strict=True):
        assert one["file"] == other["file"]
        for found, expected in zip(one["detections"], other["detections"], strict=True):
            assert found["class"] == expected["class"]
            assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
            assert found["box"] == pytest.approx(expected["box"], abs=1e-2)
    assert sum(len(content["detections"]) for content in contents[0]) > 5


@pytest.mark.long
@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".pt2", []), (".xml", ["--input", "resize"]), (".onnx", ["--raw"]), (".xml", ["--raw"])],
)
def test_other_formats_and_forms(run: Path, tmp_path: Path, suffix: str, options: list[str]) -> None:
    path = tmp_path / f"model{suffix}"
    assert cli.export([str(run), "--output", str(path), "--pictures", "2", *options]) == 0
    files = {path.name, f"{path.name}.report.json"} | ({"model.bin"} if suffix == ".xml" else set())
    assert set(os.listdir(tmp_path)) == files
    assert open_runner(path)[1].raw == ("--raw" in options)


@pytest.mark.long
def test_a_detector_that_is_given_its_proposals(tmp_path: Path) -> None:
    config = {**FAST, "backbone": {"name": "lenet5"}, "roi": {**FAST["roi"], "hidden": [8]}}
    run = train_tiny(tmp_path / "fast", model=config)
    path = tmp_path / "fast.onnx"
    assert cli.export([str(run), "--output", str(path), "--pictures", "3", "--batch", "1"]) == 0
    assert_same_detections(detections_of(path, tmp_path), detections_of(run, tmp_path))


# ---- a file that differs, or is never finished


def write_something(folder: Path) -> export.Files:
    (folder / "result").mkdir()
    for path in (folder / "complete.onnx", folder / "result" / "model.onnx"):
        path.write_bytes(b"new")
    return export.Files(SimpleNamespace(), folder / "complete.onnx", folder / "result" / "model.onnx")  # type: ignore[arg-type]


@pytest.fixture
def differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every export is written at once and differs from its detector."""
    report = SimpleNamespace(
        problems=("3 of 9 detections differ",), to_json=lambda: "{}", table=lambda: "", summary=lambda: "differs"
    )
    monkeypatch.setattr(export, "_write", lambda *arguments: write_something(arguments[4]))
    monkeypatch.setattr(export, "compare", lambda *_: report)


@pytest.mark.usefixtures("differs")
def test_a_file_that_differs_is_not_written_unless_it_is_accepted(refused: Refused, run: Path) -> None:
    Path("model.onnx").write_bytes(b"old")
    message = refused(cli.export, run, "--output", "model.onnx")
    assert message.startswith("model.onnx: not written, as it differs from the detector: 3 of 9 detections differ; ")
    assert message.endswith("--accept writes it all the same")
    assert Path("model.onnx").read_bytes() == b"old"
    assert sorted(os.listdir()) == ["model.onnx", "model.onnx.report.json"]
    assert cli.export([str(run), "--output", "model.onnx", "--accept"]) == 0
    assert Path("model.onnx").read_bytes() == b"new"
    assert sorted(os.listdir()) == ["model.onnx", "model.onnx.report.json"]


@pytest.mark.usefixtures("differs")
@pytest.mark.parametrize("step", ["_write", "compare"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_export_that_is_interrupted_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    def fail(*arguments: Any) -> None:
        if step == "_write":
            write_something(arguments[4])
        raise error

    monkeypatch.setattr(export, step, fail)
    arguments = [str(run), "--output", str(tmp_path / "model.onnx")]
    if error is KeyboardInterrupt:
        assert cli.export(arguments) == 130
    else:
        with pytest.raises(ZeroDivisionError):
            cli.export(arguments)
    assert os.listdir(tmp_path) == []


# ---- mistakes


def test_mistakes_in_the_command(refused: Refused, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(cli.export, run, "--output", "model.tflite")
    assert message == (
        "model.tflite: the format follows from the suffix; expected .onnx (onnx), .pt2 (torch_export), .xml "
        "(openvino), found '.tflite'"
    )
    for output, option in (("a.pt2", ()), ("a.onnx", ("--raw",))):
        message = refused(cli.export, run, "--output", output, "--int8", *option)
        assert message == "--int8: expected an .onnx or .xml file with detections, found .pt2 or --raw"
    for name in ("batch", "calibration", "pictures"):
        message = refused(cli.export, run, "--output", "a.onnx", f"--{name}", "0")
        assert message == f"--{name}: expected at least 1, found 0"
    message = refused(cli.export, run, "--output", "a.onnx", "--size", "96x96")
    assert message == "--size 96x96: this detector takes pictures on 64 x 64 px; leave --size out"
    assert refused(cli.export, "nowhere.pt", "--output", "a.onnx") == "nowhere.pt: no such checkpoint"
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    message = refused(cli.export, run, "--output", "a.onnx")
    assert message == "to write and run ONNX files, onnxscript must be installed: pip install -e '.[export]'"
    assert os.listdir() == []


def test_options_that_cannot_be_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value, words in (
        ("--size", "640", "expected HxW in px, such as 480x640, found '640'"),
        ("--size", "0x640", "expected HxW in px"),
        ("--input", "crop", "invalid choice: 'crop'"),
    ):
        with pytest.raises(SystemExit) as left:
            cli.export([str(run), "--output", "a.onnx", option, value])
        assert left.value.code == 2
        assert words in capsys.readouterr().err


@pytest.mark.usefixtures("differs")
def test_places_that_cannot_be_written(refused: Refused, run: Path) -> None:
    config = run.with_name("tiny.yaml")
    message = refused(cli.export, run, "--output", config / "model.onnx", "--accept")
    assert message.startswith(f"{config}: cannot make this output folder")
    Path("model.onnx").mkdir()
    Path("model.onnx/mine").touch()
    message = refused(cli.export, run, "--output", "model.onnx", "--accept")
    assert message == "--output: model.onnx is a folder; expected a file"
    assert os.listdir("model.onnx") == ["mine"]


def test_an_exported_file_is_no_start(refused: Refused, run: Path, model: Path) -> None:
    config = run.with_name("tiny.yaml")
    message = refused(cli.export, model, "--output", "again.onnx")
    assert message == f"{model}: is an exported file already; export the run or the weights that it comes from"
    message = refused(cli.train, config, "--set", f"train.init={model}")
    assert message.endswith(
        f"{model}: an exported file has no weights to start from; name the run that it was exported from"
    )
    assert "no run here" in refused(cli.train, "--resume", model)
    assert "has no region head" in refused(cli.compress, model, "--ranks", "8", "--output", "thin.pt")


def test_files_that_are_no_detectors(refused: Refused, model: Path, tmp_path: Path) -> None:
    Path("text.onnx").write_text("hello")
    Path("cut.onnx").write_bytes(model.read_bytes()[:-1000])
    write_bare(tmp_path / "bare.onnx", {})
    Path("folder.onnx").mkdir()
    shutil.copy(model, "model.pt2")
    shutil.copy(model, "model.xml")
    damaged = "not a file that can be run: it is damaged, cut short, or of another kind"
    for name, words in {
        "nowhere.onnx": "nowhere.onnx: no such file",
        "text.onnx": f"text.onnx: {damaged}",
        "cut.onnx": f"cut.onnx: {damaged}",
        "model.xml": f"model.xml: {damaged}",
        "bare.onnx": "bare.onnx: not a file that detkit exported",
        "folder.onnx": "folder.onnx/last.pt: no such checkpoint",
        "model.pt2": "model.pt2: not loaded, as torch.export.load runs any code that a .pt2 file brings; take",
    }.items():
        assert refused(cli.evaluate, name).startswith(words)
        assert refused(cli.predict, name, model.parent, "--output", "out").startswith(("out", str(model.parent), words))


def test_a_file_of_other_classes_than_the_data(refused: Refused, model: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / "kit", {"one": [voc_object("dog", (5, 5, 20, 20))], "two": []})
    data = f"data={{name: voc, root: {tmp_path}/kit, train: [2007_train], val: [2007_val], classes: [dog]}}"
    message = refused(cli.evaluate, model, "--set", data)
    assert message.startswith(
        "this detector does not know 1 of the data set's 1 classes (dog); it was trained on circle"
    )


def test_a_public_detector_brings_no_data(refused: Refused, exported: Callable[..., Path]) -> None:
    path = exported(".onnx", "letterbox")
    message = refused(cli.evaluate, path)
    assert message == f"{path}: public weights bring no data; name a configuration that does with --config"
    message = refused(cli.evaluate, path, "--config", ROOT / "configs/ssd.yaml", "--set", "data.root=shapes")
    assert "this detector does not know 6 of the data set's 6 classes" in message

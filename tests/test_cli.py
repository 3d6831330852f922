"""The tools as a user calls them: train, eval, predict, anchors, proposals."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import detkit
from detkit import cli
from detkit.cli import command
from detkit.data.pictures import read_picture
from detkit.engine.settings import RunConfig
from tests.cli_support import train_tiny, write_config
from tests.data.writers import write_coco, write_picture

TOOLS = Path(__file__).parents[1] / "tools"
COCO_NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the shapes as COCO; nothing may change it."""
    folder = tmp_path_factory.mktemp("cli")
    data = {"name": "shapes", "format": "coco", "root": str(folder / "shapes"), "num_train": 6, "num_val": 20}
    return train_tiny(folder, data=data)


@pytest.fixture
def config(run: Path) -> Path:
    return run.with_name("tiny.yaml")


@pytest.fixture
def numbers(run: Path, tmp_path: Path) -> dict[str, Any]:
    return evaluated(run, tmp_path / "numbers.json")


def evaluated(source: object, path: Path, *options: object) -> dict[str, Any]:
    """What `eval --json` writes."""
    assert cli.evaluate([str(source), "--json", str(path), *map(str, options)]) == 0
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def records(run: Path, kind: str = "val") -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


# ---- train


def test_run_folder(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "last.pt", "best.pt", "curves.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if name.startswith(".")]  # nothing half written
    resolved = RunConfig.model_validate_json(json.dumps(yaml.safe_load((run / "config.yaml").read_text())))
    assert resolved.train.epochs == 1
    assert "nms_threshold" in (run / "config.yaml").read_text()  # a default that the given file does not mention
    assert [record["epoch"] for record in records(run)] == [1]
    assert torch.load(run / "last.pt", weights_only=True)["config"] == (run / "config.yaml").read_text()


def test_runs_are_numbered_and_the_newest_is_evaluated(
    config: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.train([str(config)]) == 0
    first = Path("runs/tiny")
    before = {path: path.read_bytes() for path in first.iterdir()}
    shutil.copytree(run, "runs/tiny-2")
    assert cli.train([str(config), "--set", "train.seed=3", "--set", "eval={protocol: coco}"]) == 0
    second = Path("runs/tiny-3")
    assert before == {path: path.read_bytes() for path in first.iterdir()}
    resolved = yaml.safe_load((second / "config.yaml").read_text())
    assert (resolved["train"]["seed"], resolved["eval"]["protocol"]) == (3, "coco")
    assert [name for name in records(second)[0] if name not in ("kind", "step", "epoch")] == COCO_NAMES
    for newest, time in ((second, 2_000_000_000), (first, 2_100_000_000)):  # both in the future
        os.utime(newest / "last.pt", (time, time))
        capsys.readouterr()
        assert cli.evaluate([]) == 0
        assert capsys.readouterr().out.splitlines()[0] == str(newest)


def test_empty_output_folder_is_taken(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert cli.train([str(config), "--output", str(tmp_path / "mine"), "--set", "data.num_train=4"]) == 0
    out = capsys.readouterr().out
    assert "4 images" in out
    assert f"writing to {tmp_path / 'mine'}" in out
    assert (tmp_path / "mine" / "best.pt").exists()


def test_resume_with_and_without_the_configuration(run: Path, config: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "with", tmp_path / "without"]
    for folder, given in zip(runs, ([str(config)], []), strict=True):
        shutil.copytree(run, folder)
        assert cli.train([*given, "--resume", str(folder), "--set", "train.epochs=2"]) == 0
        assert [record["epoch"] for record in records(folder)] == [1, 2]
        assert records(folder)[0] == records(run)[0]
    states = [torch.load(folder / "last.pt", weights_only=True) for folder in runs]
    assert [state["epoch"] for state in states] == [2, 2]
    old = torch.load(run / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(states[0]["model"][name], states[1]["model"][name]) for name in old)
    assert any(not torch.equal(states[0]["model"][name], old[name]) for name in old)


def test_resume_of_a_finished_run_changes_nothing(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "again")
    before = {name: (folder / name).read_bytes() for name in ("last.pt", "best.pt", "metrics.jsonl", "config.yaml")}
    assert cli.train(["--resume", str(folder)]) == 0
    assert before == {name: (folder / name).read_bytes() for name in before}


# ---- eval


def test_json_has_three_protocols(run: Path, numbers: dict[str, Any]) -> None:
    classes = ["circle", "cross", "rectangle", "ring", "star", "triangle"]
    assert list(numbers) == ["voc07", "voc10", "coco"]
    for protocol, names in {"voc07": ["mAP"], "voc10": ["mAP"], "coco": COCO_NAMES}.items():
        assert list(numbers[protocol]) == [*names, "per_class"]
        assert list(numbers[protocol]["per_class"]) == classes


def test_numbers_are_those_of_the_last_validation(run: Path, numbers: dict[str, Any]) -> None:
    assert numbers["voc07"]["mAP"] == records(run)[-1]["mAP"]
    assert numbers["voc07"]["mAP"] == torch.load(run / "best.pt", weights_only=True)["score"]


def test_checkpoint_and_batch_size_give_the_same_numbers(run: Path, numbers: dict[str, Any], tmp_path: Path) -> None:
    """After one epoch the best checkpoint is the last."""
    assert evaluated(run / "best.pt", tmp_path / "best.json") == numbers
    only = evaluated(run / "last.pt", tmp_path / "last.json", "--protocol", "coco", "--protocol", "voc10")
    assert only == {protocol: numbers[protocol] for protocol in ("coco", "voc10")}


def test_detections_file_gives_the_same_numbers_in_pycocotools(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "detections.json"
    numbers = evaluated(run, tmp_path / "numbers.json", "--save-detections", file)["coco"]
    truth = COCO(str(run.with_name("shapes") / "annotations" / "instances_val.json"))
    assert {entry["image_id"] for entry in json.loads(file.read_text())} == set(truth.getImgIds())
    measured = COCOeval(truth, truth.loadRes(str(file)), "bbox")
    for step in (measured.evaluate, measured.accumulate, measured.summarize):
        step()
    ours = [-1 if numbers[name] is None else numbers[name] for name in COCO_NAMES]
    assert ours == pytest.approx(measured.stats.tolist(), abs=1e-12)
    assert max(ours) > 0


def test_eval_on_other_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data of another configuration; its model plays no part."""
    data = {"name": "shapes", "root": str(tmp_path / "other"), "num_train": 1, "num_val": 2, "seed": 1}
    other = write_config(tmp_path / "other.yaml", data)
    capsys.readouterr()
    first = evaluated(run, tmp_path / "a.json", "--config", other)
    assert "\n2 images, " in capsys.readouterr().out
    second = evaluated(run, tmp_path / "b.json", "--config", other, "--set", "data.num_val=4")
    assert "\n4 images, " in capsys.readouterr().out
    changed = evaluated(run, tmp_path / "c.json", "--set", f"data.root={tmp_path / 'third'}", "--set", "data.num_val=5")
    assert "\n5 images, " in capsys.readouterr().out
    assert len({json.dumps(content) for content in (first, second, changed)}) == 3


# ---- predict


@pytest.fixture
def media(run: Path, tmp_path: Path) -> Path:
    """A folder with a picture, one in a subfolder, and a video of three frames."""
    folder = tmp_path / "media"
    pictures = sorted((run.with_name("shapes") / "VOC2007" / "JPEGImages").glob("val_*.jpg"))[:3]
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copy(pictures[0], folder / "one.jpg")
    cv2.imwrite(str(folder / "deep" / "er" / "two.png"), cv2.imread(str(pictures[1])))
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (320, 240))
    for picture in pictures:
        writer.write(cv2.resize(cv2.imread(str(picture)), (320, 240)))
    writer.release()
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_predict_on_a_folder_with_a_video(run: Path, media: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    assert cli.predict([str(run), str(media), "--output", str(output), "--score-threshold", "0.1"]) == 0
    drawn = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert drawn == {"one.jpg", "deep/er/two.png", "clip.mp4", "detections.json"}
    results = json.loads((output / "detections.json").read_text())
    assert [(Path(r["file"]).name, r.get("frame")) for r in results] == [
        ("clip.avi", 0), ("clip.avi", 1), ("clip.avi", 2), ("one.jpg", None), ("two.png", None),
    ]  # fmt: skip
    assert {Path(result["drawing"]) for result in results} == {output / name for name in drawn if "json" not in name}
    video = cv2.VideoCapture(str(output / "clip.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(5, abs=1e-3)
    for result in results:
        size = (240, 320) if "frame" in result else cv2.imread(result["file"]).shape[:2]
        boxes = np.array([found["box"] for found in result["detections"]])
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= size[::-1]).all()
        assert boxes.max() > 96  # the input is at most that large
        scores = [found["score"] for found in result["detections"]]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] >= 0.1  # so there is something to draw
    picture = media / "deep" / "er" / "two.png"
    drawing = cv2.imread(str(output / "deep" / "er" / "two.png"))
    assert drawing.shape == cv2.imread(str(picture)).shape
    assert not np.array_equal(drawing, cv2.imread(str(picture)))
    (expected,) = detkit.predict(run, picture)
    expected = expected[expected.scores >= 0.1]
    assert [found["box"] for found in results[4]["detections"]] == expected.boxes.tolist()


def test_predict_on_single_files(run: Path, media: Path, tmp_path: Path) -> None:
    """What scores less than the threshold is left out of the drawings and of the JSON."""
    files = [media / "one.jpg", media / "deep" / "er" / "two.png"]
    output = tmp_path / "out"
    arguments = [str(run / "best.pt"), *map(str, files), "--output", str(output), "--score-threshold", "1"]
    assert cli.predict([*arguments, "--device", "cpu"]) == 0
    assert {path.name for path in output.iterdir()} == {"one.jpg", "two.png", "detections.json"}
    results = json.loads((output / "detections.json").read_text())
    assert [result["file"] for result in results] == list(map(str, files))
    assert all(result["detections"] == [] for result in results)
    np.testing.assert_array_equal(cv2.imread(str(output / "two.png")), cv2.imread(str(files[1])))


def test_prediction_finds_what_evaluation_finds(run: Path, tmp_path: Path) -> None:
    pictures = run.with_name("shapes") / "VOC2007" / "JPEGImages"
    found, output = tmp_path / "detections.json", tmp_path / "out"
    evaluated(run, tmp_path / "numbers.json", "--save-detections", found, "--set", "eval.batch_size=1")
    words = [str(run), str(pictures / "val_00000.jpg"), "--output", str(output), "--score-threshold", "0"]
    assert cli.predict(words) == 0
    entries = [entry for entry in json.loads(found.read_text()) if entry["image_id"] == 1]
    (result,) = json.loads((output / "detections.json").read_text())
    assert [d["score"] for d in result["detections"]] == [entry["score"] for entry in entries]


def test_pictures_are_read_as_in_training(tmp_path: Path) -> None:
    """16 bits become 8 by the same rule; gray and transparent pictures become RGB."""
    path = tmp_path / "a.png"
    for picture, expected in (
        (np.full((4, 5), 40000, np.uint16), 156),
        (np.full((4, 5), 77, np.uint8), 77),
        (np.full((4, 5, 4), (77, 77, 77, 9), np.uint8), 77),
    ):
        cv2.imwrite(str(path), picture)
        image = read_picture(path)
        assert (image.shape, image.dtype) == ((4, 5, 3), np.uint8)
        assert (image == expected).all()


# ---- anchors


@pytest.fixture
def boxes(tmp_path: Path) -> str:
    """A setting: pictures of 80 x 40 (w x h), boxes of 8 x 8, 8 x 16 and 40 x 20, and a crowd that does not count."""
    sides = [(8, 8), (8, 16), (40, 20), (8, 8)]
    rows: list[dict[str, Any]] = [
        {"id": n, "image_id": n % 2, "category_id": 1, "bbox": [1, 2, w, h]} for n, (w, h) in enumerate(sides)
    ]
    rows.append({"id": 9, "image_id": 0, "category_id": 1, "bbox": [0, 0, 80, 40], "iscrowd": 1})
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 80, "height": 40} for n in range(2)]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "box"}]}
    write_coco(tmp_path / "coco", content)
    for image in images:
        write_picture(tmp_path / "coco" / "train2017" / image["file_name"], (40, 80))
    return f"data={{name: coco, root: '{tmp_path / 'coco'}'}}"


def test_anchors_are_in_input_px_and_in_the_units_of_the_head(
    boxes: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    yolo = {"backbone": {"name": "resnet18", "weights": None, "strides": [8, 16]}}
    letterbox = {"resize": {"name": "letterbox", "size": 160}}  # twice as large
    stretch = {"resize": {"name": "stretch", "size": 160}}  # twice as wide, four times as high
    v3 = {"name": "yolov3", **yolo, "head": {"anchors": [[[9, 9]], [[40, 40]]]}}
    cases = [
        ({"name": "yolov2", **yolo, "input": letterbox}, 3, [[1, 1], [1, 2], [5, 2.5]]),  # cells of 16
        ({**v3, "input": letterbox}, 3, [[16, 16], [16, 32], [80, 40]]),  # no multiple of two levels
        ({**v3, "input": stretch}, 3, [[16, 32], [16, 64], [80, 80]]),
        (
            {**v3, "input": letterbox},
            2,
            [[[16, 16]], [[80, 40]]],
        ),  # a list a level; 1, 1, 1/2 and 1 is more than with the mean
    ]
    for model, k, expected in cases:
        path = write_config(tmp_path / "mine.yaml", model=model)
        capsys.readouterr()
        assert cli.main(["anchors", str(path), "--k", str(k), "--set", boxes]) == 0
        out = capsys.readouterr().out
        assert yaml.safe_load(out.splitlines()[-1]) == {"anchors": expected}
        assert f"{k} anchors of 4 boxes" in out
        assert re.search(r"80\.0 x +[48]0\.0 ", out)
        assert ("IoU of a box with its best anchor: 1.0000" in out) == (k == 3)


def test_anchors_by_the_script(
    boxes: str, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.anchors([str(config), "--k", "2", "--set", boxes]) == 0
    out = capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["tools/anchors.py", str(config), "--k", "2", "--set", boxes])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(TOOLS / "anchors.py"), run_name="__main__")
    assert left.value.code == 0
    assert capsys.readouterr().out == out


# ---- proposals


def test_proposals_are_found_once_and_judged(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six pictures of the shapes; the second call finds them all, but for one whose file was removed."""
    kept = tmp_path / "kept"
    arguments = ["proposals", str(config), "--split", "train", "--output", str(kept)]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert re.search(r"kept/selective_search-\w{8}: \d+\.\d\d s of one core an image", out)
    boxes_an_image, recall, mabo = (float(line.split()[-1]) for line in out.splitlines()[-3:])
    assert boxes_an_image > 20
    assert recall > 0.5
    assert 0.5 < mabo <= 1

    files = sorted(kept.rglob("*.npy"))
    assert len(files) == 6
    contents = [file.read_bytes() for file in files]
    files[1].unlink()
    assert cli.main(arguments) == 0
    assert [file.read_bytes() for file in files] == contents
    capsys.readouterr()
    assert cli.main(arguments) == 0
    assert "all found before" in capsys.readouterr().out


# ---- the command line itself


@pytest.mark.parametrize("tool", cli.COMMANDS)
def test_help_explains_each_option(
    tool: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([tool, "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    parsers: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda parser, arguments: parsers.append(parser))
    monkeypatch.setattr(command, "prepare_process", sys.exit)
    with pytest.raises(SystemExit):
        cli.COMMANDS[tool](["anything"])
    options = parsers[0]._actions
    assert options
    for option in options:
        assert option.help
        assert (option.option_strings or [option.metavar or option.dest])[-1] in out
        assert option.help.split()[0] in out


def test_detkit_dispatches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'detkit = "detkit.cli:main"' in (TOOLS.parent / "pyproject.toml").read_text()
    monkeypatch.setattr(sys, "argv", ["detkit", "--help"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    assert re.search(
        r"train,.*doctor,\s*eval,\s*report,\s*predict,\s*serve,\s*export,\s*anchors", capsys.readouterr().out
    )
    monkeypatch.setattr(sys, "argv", ["detkit", "train"])
    assert cli.main() == 2
    assert "name a configuration" in capsys.readouterr().err


def test_tools_do_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_picture(tmp_path / "a.png", (120, 160))
    calls = {
        "train": [str(run.with_name("tiny.yaml")), "--set", "eval.protocol=voc10", "--output", str(tmp_path / "run")],
        "eval": [str(run), "--json", str(tmp_path / "out.json")],
        "predict": [str(run), str(tmp_path / "a.png"), "--output", str(tmp_path / "drawn")],
    }
    written = {"train": "run/metrics.jsonl", "eval": "out.json", "predict": "drawn/detections.json"}
    for tool, arguments in calls.items():
        assert len((TOOLS / f"{tool}.py").read_text().splitlines()) < 80
        assert cli.main([tool, *arguments]) == 0
        by_detkit = (tmp_path / written[tool]).read_text()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        (tmp_path / written[tool]).unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(TOOLS / f"{tool}.py"), run_name="__main__")
        assert left.value.code == 0
        assert (tmp_path / written[tool]).read_text() == by_detkit


def test_script_leaves_with_status_2(tmp_path: Path) -> None:
    """The one test with a process of its own."""
    command = [sys.executable, str(TOOLS / "train.py"), "nowhere.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nowhere.yaml: no such configuration file")
    assert done.stderr.count("\n") == 1


def test_interruption_is_no_stack_trace(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("detkit.engine.train.save_config", interrupt)
    assert cli.train([str(config), "--output", str(tmp_path / "run")]) == 130
    err = capsys.readouterr().err
    assert "--resume" in err
    assert "Traceback" not in err


def test_a_reader_that_has_enough_is_no_error() -> None:
    """`detkit configs | head -1`."""
    program = f"'{sys.executable}' -m detkit configs | head -c 5; echo; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], cwd=TOOLS.parent, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] in ("0", "141")  # 0 if everything was written before
    assert done.stderr == ""


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_is_an_interruption(
    failure: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch's writer of files raises a RuntimeError of its own while it handles one."""

    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise failure("unexpected pos")

    monkeypatch.setattr(command, "prepare_process", interrupted)
    assert cli.main(["configs"]) == 130
    assert capsys.readouterr().err.startswith("interrupted")


def test_an_error_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a mistake in detkit")

    monkeypatch.setattr(command, "prepare_process", fail)
    with pytest.raises(RuntimeError, match="a mistake in detkit"):
        cli.main(["configs"])


@pytest.mark.parametrize("words", [["train", "n" * 300], ["eval", "n" * 300], ["init", "n" * 300, "--data", "."]])
def test_a_name_that_is_too_long_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert "File name too long" in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["2", "-0.1", "nan"])
def test_a_score_is_from_0_to_1(threshold: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "run", "a.jpg", "--output", str(tmp_path), "--score-threshold", threshold]
    assert cli.main(words) == 2
    assert "score_threshold: should be" in capsys.readouterr().err

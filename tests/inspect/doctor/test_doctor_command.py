"""`detkit doctor`: text, JSON, the mended copy, and what it refuses."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from detkit import cli
from detkit.engine.convert import convert
from tests.cli_support import train_tiny
from tests.engine.settings import MODEL
from tests.inspect.doctor.drawn_sets import CAT, CLEAN, DOG, GOOD, Drawn, write_set

# What --fix mends, and what it leaves: the same box of two classes.
FLAWED = [
    Drawn([*GOOD, (CAT, 5, 5, 0, 10), (CAT, 130, 5, 10, 10), (CAT, 100, 50, 30, 20), (CAT, 5, 55, 1, 20)]),
    Drawn([*GOOD, GOOD[0], (DOG, 10, 10, 30, 40)]),
    Drawn(size=(100, 80), actual=(120, 80)),
]
MENDED = {"box-empty", "box-outside", "box-over-border", "box-one-pixel", "box-twice", "size-disagrees"}


def write_yaml(path: Path, data: dict[str, Any]) -> Path:
    resize = {"resize": {"name": "short_side", "size": 80, "max_size": 120}}
    train = {"epochs": 1, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.01}}
    tree = {
        "model": {**MODEL, "input": resize},
        "data": data,
        "train": train,
        "loader": {"workers": 0},
        "device": "cpu",
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def codes(config: Path, tmp_path: Path, *options: str) -> set[str]:
    assert cli.doctor([str(config), "--json", str(tmp_path / "out.json"), *options]) == 0
    content = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    return {finding["code"] for finding in content["findings"]}


def section(output: str) -> dict[str, Any]:
    """The `data` that the command prints for the copy."""
    loaded: dict[str, Any] = yaml.safe_load(output.partition("in a configuration: data: ")[2])
    return loaded


def test_a_clean_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_yaml(tmp_path / "c.yaml", write_set(tmp_path / "data", CLEAN, CLEAN))
    assert codes(config, tmp_path) == set()
    lines = capsys.readouterr().out.splitlines()
    assert "train 12 images and 24 objects, val 12 images and 24 objects; for faster_rcnn" in lines[0]
    assert lines[1] == "nothing is wrong"
    assert "Objects by class" in lines


def test_the_text_has_each_finding_with_its_fix_and_three_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [Drawn([*GOOD, (CAT, 5, 5, 1, 20)]) for _ in range(5)]
    config = write_yaml(tmp_path / "c.yaml", write_set(tmp_path / "data", [*CLEAN, *pictures], CLEAN))
    assert codes(config, tmp_path) == {"box-one-pixel", "anchor-none"}  # no anchor is as thin
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("warning box-one-pixel: 5 of 63")
    assert lines[start + 1].startswith("  5 of 63 objects (train 5)")
    assert lines[start + 2].startswith("  fix: ")
    places = [line for line in lines[start + 3 : start + 7] if line.startswith("    train ")]
    assert len(places) == 3
    assert places[0].endswith("train13.png at 5.0, 5.0, 6.0, 25.0: cat, 1 x 20 px")


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_a_mended_copy_has_none_of_it_and_the_original_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """In other formats: what of it they can hold, by hand."""
    data = write_set(tmp_path / "data", [*CLEAN, *FLAWED], CLEAN)
    expected = set(MENDED)
    if form != "coco":
        data, expected = written_as(form, tmp_path)
    before = digests(Path(data["root"]))
    config = write_yaml(tmp_path / "c.yaml", data)
    assert codes(config, tmp_path, "--fix", str(tmp_path / "out")) >= expected
    output = capsys.readouterr().out
    assert digests(Path(data["root"])) == before
    mended = write_yaml(tmp_path / "mended.yaml", section(output))
    assert codes(mended, tmp_path) == ({"box-two-classes"} if form == "coco" else set())
    if form == "coco":
        assert "1 box of two classes: one of them is wrong" in output
        for line in ("1 box removed: empty", "1 box removed: outside of the picture"):
            assert line in output
        for line in ("1 box cut at the border", "1 box removed: repeats another", "1 size of a picture corrected"):
            assert line in output


def written_as(form: str, tmp_path: Path) -> tuple[dict[str, Any], set[str]]:
    """The clean set in another format, with a box that repeats another and one that is empty; its section `data`."""
    write_set(tmp_path / "clean", CLEAN, CLEAN)
    lines = convert(tmp_path / "clean", tmp_path / form, form)
    data = section(lines[-1].replace("next, ", "", 1))
    if form == "voc":
        path = next((tmp_path / form).rglob("Annotations/train*1.xml"))
        text = path.read_text(encoding="utf-8")
        box = text[text.index("  <object>") : text.index("</object>") + len("</object>\n")]
        empty = box.replace("<xmax>40<", "<xmax>11<")
        assert empty != box
        path.write_text(text.replace("</annotation>", f"{box}{empty}</annotation>"), encoding="utf-8")
        return data, {"box-empty", "box-twice"}
    path = next((tmp_path / form).rglob("labels/train/*1.txt"))
    label, x, y, w, h = path.read_text(encoding="utf-8").splitlines()[0].split()
    near, empty = f"{label} {x} {y} {float(w) * 1.01:.8f} {h}", f"{label} {x} {y} 0 {h}"
    path.write_text(f"{path.read_text(encoding='utf-8')}{near}\n{empty}\n", encoding="utf-8")
    return data, {"box-empty", "box-twice"}


def test_the_copy_says_what_is_not_about_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(tmp_path / "data", CLEAN, CLEAN)
    content = json.loads((tmp_path / "data" / "train.json").read_text(encoding="utf-8"))
    content["annotations"][0] |= {"segmentation": [[10, 10, 40, 10, 40, 50]], "caption": "a shape"}
    (tmp_path / "data" / "train.json").write_text(json.dumps(content), encoding="utf-8")
    assert cli.doctor([str(write_yaml(tmp_path / "c.yaml", data)), "--fix", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "nothing had to be changed" in output
    assert "1 annotation with 'caption'" in output
    assert "segmentation" not in output
    copied = json.loads((tmp_path / "out" / "train.json").read_text(encoding="utf-8"))
    assert copied["annotations"][0]["segmentation"] == [[10, 10, 40, 10, 40, 50]]


def test_a_folder_with_files_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "data", CLEAN[:1], CLEAN[:1])
    config = write_yaml(tmp_path / "c.yaml", data)
    before = digests(tmp_path)
    for folder in (tmp_path / "data", config):
        assert cli.doctor([str(config), "--fix", str(folder)]) == 2
        captured = capsys.readouterr()
        assert captured.err == f"error: --fix {folder}: exists already and is not empty; name another folder\n"
        assert captured.out == ""
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["faster_rcn"], "did you mean faster_rcnn"),
        (["{config}", "--set", "model.nme=1"], "model.nme"),
        (["{config}", "--set", "data.root=nowhere"], "does not exist"),
        (["{config}", "--run", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    config = write_yaml(tmp_path / "c.yaml", write_set(tmp_path / "data", CLEAN[:1], CLEAN[:1]))
    assert cli.doctor([argument.format(config=config) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.long
def test_a_run_judges_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_tiny(tmp_path)
    assert codes(tmp_path / "tiny.yaml", tmp_path, "--run", str(run)) >= {"labels-not-judged"}


@pytest.mark.long
def test_a_run_of_other_classes_is_matched_by_the_options_that_the_message_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(tmp_path)
    data = write_yaml(tmp_path / "c.yaml", write_set(tmp_path / "data", CLEAN[:1], CLEAN[:1]))
    arguments = [str(data), "--run", str(run)]
    assert cli.doctor(arguments) == 2
    error = capsys.readouterr().err
    assert "does not know 2 of the data set's 2 classes" in error
    assert "--class-map FILE" in error
    assert "--classes shared" in error
    (tmp_path / "map.yaml").write_text("circle: cat\n")
    assert cli.doctor([*arguments, "--class-map", str(tmp_path / "map.yaml"), "--classes", "shared"]) == 0
    assert cli.doctor([str(data), "--classes", "shared"]) == 2
    assert "have no effect without --run" in capsys.readouterr().err


def test_a_picture_that_lost_all_of_its_boxes_is_not_copied_as_background(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [Drawn([(CAT, 5, 5, 0, 10)]), Drawn([(CAT, 5, 55, 1, 20)]), Drawn([])]
    config = write_yaml(tmp_path / "c.yaml", write_set(tmp_path / "data", [*CLEAN, *pictures], CLEAN))
    assert cli.doctor([str(config), "--fix", str(tmp_path / "mended")]) == 0
    output = capsys.readouterr().out
    assert "2 pictures without any box left: not in the copy" in output
    assert "train 13, val 12" in output, "the one that was empty is copied"


def test_neither_the_data_nor_the_configuration_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_yaml(tmp_path / "c.yaml", write_set(tmp_path / "data", CLEAN, CLEAN))
    before = digests(tmp_path)
    for options, message in (
        (["--json", str(config)], "c.yaml: is read by this command, and would be overwritten"),
        (["--fix", str(tmp_path / "data" / "fixed")], "lies in the data that it would mend"),
    ):
        assert cli.doctor([str(config), *options]) == 2
        assert message in capsys.readouterr().err
    assert digests(tmp_path) == before

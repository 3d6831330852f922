"""What a user gets for a mistake: one message on stderr that says what, where and how to mend it, and status 2."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from detkit import cli
from detkit.config import load_config
from detkit.data.dataset import ImageDataset
from detkit.engine.evaluate import detection_store
from detkit.engine.settings import RunConfig
from detkit.evaluation.store import DetectionStore
from tests.cli_support import FAST, TINY, train_tiny, write_config
from tests.data.writers import coco_content, voc_object, write_coco, write_picture, write_voc, write_yolo

Refused = Callable[..., str]
DOG, CAT = voc_object("dog", (5, 5, 20, 20)), voc_object("cat", (1, 1, 30, 30))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the shapes; nothing may change it."""
    return train_tiny(tmp_path_factory.mktemp("bad_input"))


@pytest.fixture
def config(run: Path) -> Path:
    return run.with_name("tiny.yaml")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`refused(tool, *arguments)`: the message of a call that must end with status 2; it is made in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def call(tool: Callable[[Sequence[str]], int], *arguments: object) -> str:
        capsys.readouterr()
        assert tool([str(argument) for argument in arguments]) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        starts = [match.end() for match in re.finditer(r"(?:^|[\r\n])error: ", err)]
        assert len(starts) == 1, err
        return err[starts[0] :]

    return call


def says(message: str, *words: str) -> None:
    for word in words:
        assert word in message


# ---- the configuration


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.epoch=1", ["train.epoch: unknown key", "did you mean 'epochs'?"]),
        ("model.rpn.nms_treshold=0.1", ["model.rpn.nms_treshold: unknown key", "'nms_threshold'"]),
        ("data.roots=here", ["data.roots: unknown key", "'root'"]),
        ("nothing_like_it=1", ["nothing_like_it: unknown key", "known: ", "model", "train"]),
        ("train.epochs=many", ["train.epochs: ", "integer", "found 'many'"]),
        ("train.batch_size=0", ["train.batch_size: ", "greater than or equal to 1", "found 0"]),
        ("train.optimizer.lr=.nan", ["train.optimizer.lr: ", "finite", "found nan"]),
        ("train=3", ["train: ", "found 3"]),
        ("model.name=faster_rcn", ["model.name: 'faster_rcn' is not known", "'faster_rcnn'"]),
        ("model.backbone.name=resnet19", ["model.backbone.name: 'resnet19' is not known", "'resnet18'"]),
        ("model.backbone.weights=IMAGENET1K_V9", ["model.backbone", "'IMAGENET1K_V9'", "resnet18", "IMAGENET1K_V1"]),
        ("train.optimizer.name=adam", ["train.optimizer.name: 'adam' is not known", "'adamw'"]),
        ("data.name=voc7", ["data.name: 'voc7' is not known", "'voc'"]),
        ("device=gpu", ["device: expected auto, cpu, cuda or cuda:N, found 'gpu'"]),
        ("device=cuda:one", ["device: expected auto, cpu, cuda or cuda:N, found 'cuda:one'"]),
    ],
)
def test_setting_is_refused_by_its_path(refused: Refused, config: Path, setting: str, words: list[str]) -> None:
    message = refused(cli.train, config, "--set", setting)
    says(message, "1 error", *words)
    assert not Path("runs").exists()


def test_errors_of_a_file_are_shown_all_at_once(refused: Refused, tmp_path: Path) -> None:
    train = {**TINY["train"], "epoch": 3, "optimizer": {"name": "sgd", "lr": -1}}
    path = write_config(tmp_path / "mine.yaml", train=train, eval={"protocol": "voc7"}, devise="cpu")
    message = refused(cli.train, path)
    says(message, "mine.yaml: 4 errors", "train.epoch: unknown key; did you mean 'epochs'?", "train.optimizer.lr: ")
    says(message, "eval.protocol: 'voc7' is not known; did you mean 'voc07'?", "devise: unknown key")
    assert len(message.strip().splitlines()) == 5


def test_configuration_is_checked_before_the_data(refused: Refused, config: Path) -> None:
    data = "data={name: voc, root: /nowhere, train: [2007_train], val: [2007_val], clases: auto}"
    message = refused(cli.train, config, "--set", data)
    says(message, "data.clases: unknown key; did you mean 'classes'?")
    assert "does not exist" not in message
    says(refused(cli.train, config, "--set", data.replace("clases", "classes")), "data.root", "/nowhere does not exist")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.epochs", ["--set train.epochs: expected a.b=value"]),
        ("=3", ["--set =3: expected a.b=value"]),
        ("train.epochs.first=1", ["--set train.epochs.first=1", "train.epochs is a value"]),
        ("train.epochs=[1", ["--set", "train.epochs: should be a valid integer, found '[1'"]),
    ],
)
def test_malformed_set(refused: Refused, config: Path, run: Path, setting: str, words: list[str]) -> None:
    says(refused(cli.train, config, "--set", setting), *words)
    says(refused(cli.evaluate, run, "--set", setting), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"model: [1\ntrain: 2\n", ["mine.yaml:2:6: expected ',' or ']'"]),
        (b"model:\n\tname: x\n", ["mine.yaml:2:1", "'\\t'"]),
        (b"# gr\xfcn\nmodel: 1\n", ["mine.yaml", "not UTF-8", "save it as UTF-8"]),
        (b"a: \x00\n", ["mine.yaml: not YAML"]),
        (b"", ["mine.yaml: expected a mapping"]),
        (b"- a\n", ["mine.yaml: expected a mapping", "found a list"]),
        (b"a: 1\nb: 2\na: 3\n", ["mine.yaml:3:1: key 'a' stands twice"]),
        (b"a: !!python/object/apply:os.getcwd []\n", ["mine.yaml:1:4", "python/object"]),
        (b"device: cpu\n", ["3 errors", "model: missing", "data: missing", "train: missing"]),
    ],
)
def test_configuration_file_that_is_none(refused: Refused, tmp_path: Path, text: bytes, words: list[str]) -> None:
    (tmp_path / "mine.yaml").write_bytes(text)
    says(refused(cli.train, "mine.yaml"), *words)


def test_off_is_a_word(config: Path) -> None:
    """`amp: off` is what the choices are called; only true and false are booleans."""
    assert load_config(config, RunConfig, ["train.amp=off"]).train.amp == "off"


def test_configuration_is_not_there(refused: Refused, tmp_path: Path, run: Path) -> None:
    says(refused(cli.train), "name a configuration", "configs/", "--resume")
    says(refused(cli.train, "nowhere.yaml"), "nowhere.yaml: no such configuration file")
    says(refused(cli.train, tmp_path), "Is a directory")
    says(refused(cli.evaluate, run, "--config", "nowhere.yaml"), "nowhere.yaml: no such configuration file")


def test_command_lines(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    for arguments, words in {
        (): "required: command\n",
        ("trian",): "invalid choice: 'trian'",
        ("eval", str(run), "--protocol", "voc12"): "invalid choice: 'voc12'",
        ("predict", str(run), "a.jpg"): "required: --output",
        ("predict", str(run), "a.jpg", "--output", "x", "--score-threshold", "high"): "'high'",
        ("train", "a.yaml", "--sett", "x"): "unrecognized arguments: --sett",
    }.items():
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 2
        assert words in capsys.readouterr().err


# ---- devices


def test_device(refused: Refused, config: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_picture(tmp_path / "a.png")
    for message in (
        refused(cli.train, config, "--set", "device=cuda"),
        refused(cli.evaluate, run, "--set", "device=cuda:0"),
        refused(cli.predict, run, "a.png", "--output", "out", "--device", "cuda"),
    ):
        says(message, "device: cuda", "no CUDA device", "cpu")
    says(refused(cli.predict, run, "a.png", "--output", "out", "--device", "npu"), "expected auto, cpu, cuda", "'npu'")
    says(refused(cli.train, config, "--set", "train.amp=fp16"), "train.amp: fp16 needs a CUDA device", "bf16")


# ---- data on disk


def edit_xml(old: str, new: str) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "Annotations" / "one.xml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return edit


def truncate_picture(folder: Path) -> None:
    path = folder / "JPEGImages" / "one.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-600])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit_xml("dog", ""), ["one.xml: object 1 (no name, xmin 5", "expected one <name>, the class, found none"]),
        (edit_xml("<name>", "<difficult>perhaps</difficult><name>"), ["object 1", "perhaps", "expected 0 or 1"]),
        (edit_xml("annotation>", "html>"), ["one.xml: is XML of another format, <html>", "detkit convert"]),
        (edit_xml("</annotation>", ""), ["one.xml: is not well-formed XML", "line 1"]),
        (edit_xml("<xmin>5<", "<xmin>left<"), ["one.xml: object 1 (dog, xmin left", "number"]),
        (edit_xml("<xmin>5<", "<xmin>nan<"), ["one.xml: object 1 (dog, xmin nan", "not finite"]),
        (edit_xml("<xmin>5<", "<xmin>40<"), ["one.xml: object 1 (dog, xmin 40", "xmax 20", "empty"]),
        (edit_xml("<xmax>20<", "<xmax>90<"), ["one.xml: object 1", "leaves the image, 60 x 40"]),
        (edit_xml("<width>60<", "<width>61<"), ["one.xml: says 61 x 40", "one.jpg is 60 x 40"]),
        (
            lambda folder: [(folder / name).unlink() for name in ("Annotations/one.xml", "JPEGImages/one.jpg")],
            ["one.jpg: neither this picture nor its annotation file", "one.xml exists"],
        ),
        (lambda folder: (folder / "JPEGImages/one.jpg").unlink(), ["one.xml", "one.jpg does not exist"]),
        (truncate_picture, ["one.jpg cannot be decoded", "truncated", "replace the file"]),
    ],
)
def test_voc_data(
    refused: Refused, config: Path, tmp_path: Path, damage: Callable[[Path], object], words: list[str]
) -> None:
    damage(write_voc(tmp_path / "kit", {"one": [DOG], "two": [CAT]}))
    message = refused(cli.train, config, "--set", voc_setting(tmp_path / "kit"))
    says(message, "voc train (2007_train): 1 problem", *words, "on_bad_label", str(tmp_path / "kit"))


def voc_setting(root: Path, classes: str = "[dog, cat]") -> str:
    return f"data={{name: voc, root: '{root}', train: [2007_train], val: [2007_val], classes: {classes}}}"


def test_voc_lists(refused: Refused, config: Path, tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "kit", {"one": [DOG], "two": [CAT]})

    def message_of(lists: str) -> str:
        return refused(cli.train, config, "--set", voc_setting(tmp_path / "kit"), "--set", f"data.train={lists}")

    says(message_of("[]"), "data.train: expected at least one split such as 2007_trainval")
    says(message_of("[train]"), "data.train: expected <year>_<list>", "'train'")
    says(message_of("[2007_trian]"), "trian.txt does not exist", "train, val")
    says(message_of("[2012_train]"), "VOC2012 does not exist", "has VOC2007")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n")
    says(message_of("[2007_train]"), "train.txt is empty", "one image id a line")


def test_voc_list_of_another_encoding(refused: Refused, config: Path, tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "kit", {"one": [DOG], "two": [CAT]})
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes(b"gr\xfcn\n")
    says(refused(cli.train, config, "--set", voc_setting(tmp_path / "kit")), "train.txt", "UTF-8")


def test_voc_classes_that_are_not_there(refused: Refused, config: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / "kit", {"one": [voc_object("dgo", (5, 5, 20, 20))], "two": [CAT]})
    message = refused(cli.train, config, "--set", voc_setting(tmp_path / "kit", "null"))
    says(message, "one.xml: object 1 (dgo", "class 'dgo' is not known; did you mean 'dog'?", "data.classes")
    message = refused(cli.train, config, "--set", voc_setting(tmp_path / "kit", "[dog]"))
    says(message, "data.classes", "voc train (2007_train) has no object of dog; its objects are of dgo, cat")


def test_auto_classes_hold_none_of_val(refused: Refused, config: Path, tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "kit", {"one": [DOG], "two": [CAT]})
    for name, stem in (("train", "one"), ("val", "two")):
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(stem)
    message = refused(cli.train, config, "--set", voc_setting(tmp_path / "kit", "auto"))
    says(message, "data.classes", "voc val (2007_val) has no object of dog; its objects are of cat")


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 4, "image_id": 7, "category_id": 3, "bbox": [10, 10, 5, 5], **changes}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (annotation(category_id=5), ["image 7: annotation 4", "category id 5 is not among the categories"]),
        (annotation(bbox=[10, 10, -5, 5]), ["image 7: annotation 4", "box x 10 to 5", "empty"]),
        (annotation(bbox=[float("nan"), 10, 5, 5]), ["image 7: annotation 4", "not finite"]),
        (annotation(bbox=["ten", 10, 5, 5]), ["image 7: annotation 4", "[x, y, width, height]", "'ten'"]),
        (annotation(bbox=[50, 10, 15, 5]), ["image 7: annotation 4", "leaves the image, 60 x 40"]),
        (annotation(image_id=9), ["annotation 4", "image id 9 is not among the images"]),
    ],
)
def test_coco_data(refused: Refused, config: Path, tmp_path: Path, row: dict[str, Any], words: list[str]) -> None:
    write_coco(tmp_path / "coco", coco_content(annotations=[row]))
    write_coco(tmp_path / "coco", coco_content(), split="val")
    message = refused(cli.train, config, "--set", f"data={{name: coco, root: '{tmp_path / 'coco'}'}}")
    says(message, "instances_train2017.json", *words)


def test_coco_files_of_different_categories(refused: Refused, config: Path, tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", coco_content())
    write_coco(tmp_path / "coco", coco_content(categories=[{"id": 3, "name": "bus"}], annotations=[]), split="val")
    message = refused(cli.train, config, "--set", f"data={{name: coco, root: '{tmp_path / 'coco'}'}}")
    says(message, "instances_val2017.json", "none of its categories (bus)", "the training file (car, dog)", "by name")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", ["the class 2 is not known", "0 (dog) to 1 (cat)"]),
        ("dog 0.5 0.5 0.1 0.1", ["expected numbers alone", "'dog 0.5 0.5 0.1 0.1'"]),
        ("0 0.5 0.5 0.1", ["expected class cx cy w h", "found 4 columns"]),
        ("0 30 20 6 4", ["expected shares of the picture, 0 to 1", "divide pixels"]),
        ("0 0.9 0.5 0.4 0.1", ["(dog): box x 42 to 66", "leaves the image, 60 x 40"]),
        ("0 0.5 0.5 0 0.1", ["(dog): box x 30 to 30", "empty"]),
        ("0 nan 0.5 0.1 0.1", ["(dog): box x nan", "not finite"]),
    ],
)
def test_yolo_data(refused: Refused, config: Path, tmp_path: Path, line: str, words: list[str]) -> None:
    write_yolo(tmp_path / "kit", {"one": f"0 0.5 0.5 0.1 0.1\n{line}\n", "two": ""})
    message = refused(cli.train, config, "--set", yolo_setting(tmp_path / "kit"))
    says(message, f"yolo train ({tmp_path / 'kit'}/data.yaml): 1 problem", "images/train/one.jpg", "on_bad_label")
    says(message, "labels/train/one.txt:2", *words)


def yolo_setting(root: Path) -> str:
    return f"data={{name: yolo, root: '{root}'}}"


def test_yolo_files(refused: Refused, config: Path, tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "kit", {"one": "0 0.5 0.5 0.1 0.1", "two": None}, nc=2)

    def message_of(*settings: str) -> str:
        given = (yolo_setting(tmp_path / "kit"), *settings)
        return refused(cli.train, config, *(part for setting in given for part in ("--set", setting)))

    says(message_of("data.train=trian"), "data.train: ", "data.yaml has no key 'trian'", "splits there: train, val")
    says(message_of("data.root=nowhere"), "data.root: the folder nowhere does not exist", "datasets/README.md")
    says(message_of("data.root=nowhere.yaml"), "data.root: nowhere.yaml does not exist")
    (folder / "three.txt").touch()
    says(message_of(), "labels/train/three.txt: no picture belongs to this label file", "add it or delete the file")
    for path in folder.iterdir():
        path.unlink()
    says(message_of(), "none of 2 pictures has a label file; expected ", "labels/train/one.txt")
    write_yolo(tmp_path / "kit", {}, nc=3)
    says(message_of(), "data.yaml: nc: says 3 classes, but names has 2")
    write_yolo(tmp_path / "kit", {}, names={"0": "dog", "two": "cat"})
    says(message_of(), "data.yaml: names: expected the numbers of the classes as keys, found 0, two")


def test_folder_of_somebody_else_is_not_drawn_over(refused: Refused, config: Path, run: Path) -> None:
    message = refused(cli.train, config, "--set", f"data.root={run}")
    says(message, "data.root", str(run), "not drawn by detkit", "another folder")


def test_shapes_cannot_be_written(refused: Refused, config: Path) -> None:
    says(refused(cli.train, config, "--set", f"data.root={config}/below"), "data.root", str(config))


def test_anchors(refused: Refused, config: Path, tmp_path: Path) -> None:
    setting = ("--set", yolo_setting(tmp_path / "kit"))
    write_yolo(tmp_path / "kit", {"one": "0 0.5 0.5 0.1 0.1\n0 0.4 0.4 0.1 0.1\n0 0.5 0.5 0.2 0.1"})
    message = refused(cli.anchors, config, *setting)
    says(message, "9 need as many different box shapes, found 2", "at most 2")
    says(refused(cli.anchors, config, "--k", 0), "--k: expected at least 1, found 0")
    says(refused(cli.anchors, config, "--seed", -1), "--seed: expected at least 0, found -1")
    says(refused(cli.anchors, "nowhere.yaml"), "nowhere.yaml: no such configuration file")
    write_yolo(tmp_path / "kit", {"one": ""})
    says(refused(cli.anchors, config, *setting), "yolo train", "no object to take anchors from")


# ---- runs and checkpoints


def test_output_folder(refused: Refused, config: Path, run: Path) -> None:
    write_picture(Path("a.png"))
    for output in (config / "below", config):  # a path below a regular file fails for root too
        says(refused(cli.train, config, "--output", output), str(output), "cannot make this output folder")
        says(refused(cli.predict, run, "a.png", "--output", output), str(output), "cannot make this output folder")
    says(refused(cli.train, config, "--output", run), str(run), "holds a run already", "--resume", "--output")


def test_resume_of_no_run(refused: Refused, config: Path, run: Path, tmp_path: Path) -> None:
    for place in ("nowhere", tmp_path, run / "last.pt"):
        for arguments in ([], [config]):
            message = refused(cli.train, *arguments, "--resume", place)
            says(message, f"--resume {place}: no run here", "config.yaml is missing", "folder of a run")
    says(refused(cli.train, "--resume", run, "--output", "elsewhere"), "--resume", "leave --output out")


def test_resume_with_another_configuration_lists_every_difference(refused: Refused, config: Path, run: Path) -> None:
    settings = ("train.batch_size=2", "model.neck.out_channels=8", "train.seed=4", "train.epochs=9")
    message = refused(cli.train, config, "--resume", run, *(part for s in settings for part in ("--set", s)))
    says(message, f"--resume {run}", "train.batch_size: the run has 3, asked for 2")
    says(message, "model.neck.out_channels: the run has 16, asked for 8", "train.seed: the run has 0, asked for 4")
    assert len(message.strip().splitlines()) == 5  # more epochs are no difference, and the last line is the way out


def test_classes_are_not_those_of_the_checkpoint(refused: Refused, run: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / "kit", {"one": [DOG], "two": [CAT]})
    setting = voc_setting(tmp_path / "kit")
    says(refused(cli.evaluate, run, "--set", setting), "does not know 2 of", "dog, cat", "trained on circle, cross")
    shutil.copytree(run, "changed")
    tree = yaml.safe_load(Path("changed/config.yaml").read_text())
    tree["data"] = yaml.safe_load(setting.removeprefix("data="))
    Path("changed/config.yaml").write_text(yaml.safe_dump(tree))
    message = refused(cli.train, "--resume", "changed", "--set", "train.epochs=2")
    says(message, "changed/last.pt", "trained on the classes circle, cross", "the data has dog, cat")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "class", "module", "pickle", "dict"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # torch's remark on the file of `pickle`
def test_checkpoint_that_is_none(refused: Refused, run: Path, kind: str) -> None:
    path = Path(f"{kind}.pt")
    match kind:
        case "text" | "empty":
            path.write_text("hello" if kind == "text" else "")
        case "cut":
            path.write_bytes((run / "best.pt").read_bytes()[:100_000])
        case "class":
            torch.save(Harmful(), path)
        case "module":
            torch.save(torch.nn.Linear(2, 2), path)
        case "pickle":
            path.write_bytes(pickle.dumps({"a": 1}))
        case "dict":
            torch.save({"a": torch.ones(1)}, path)
    says(refused(cli.evaluate, path), f"{kind}.pt: not a detkit checkpoint")
    assert not Path("harm").exists()


def test_checkpoint_is_not_there(refused: Refused, tmp_path: Path) -> None:
    says(refused(cli.evaluate), "runs: no run with a checkpoint here", "train one first")
    says(refused(cli.evaluate, "nowhere.pt"), "nowhere.pt: no such checkpoint")
    says(refused(cli.evaluate, tmp_path), "last.pt: no such checkpoint")


def test_checkpoint_that_does_not_fit_its_configuration(refused: Refused, run: Path) -> None:
    state = torch.load(run / "best.pt", weights_only=True)
    torch.save({**state, "config": state["config"].replace("out_channels: 16", "out_channels: 8")}, "a.pt")
    says(refused(cli.evaluate, "a.pt"), "a.pt: its weights do not fit", "neck.", "[16, 64, 1, 1]", "[8, 64, 1, 1]")
    torch.save({**state, "config": state["config"].replace("epochs:", "epoch:")}, "b.pt")
    says(refused(cli.evaluate, "b.pt"), "b.pt: its configuration: 2 errors", "train.epoch: unknown key")


def test_public_weights(refused: Refused) -> None:
    says(refused(cli.evaluate, "torchvision:fasterrcnn"), "torchvision:fasterrcnn: not known", "resnet50_fpn")
    Path("text.pth").write_text("hello")
    message = refused(cli.evaluate, "torchvision:fasterrcnn_resnet50_fpn:text.pth")
    says(message, "text.pth: not a torchvision checkpoint")


def test_numbers_cannot_be_written(refused: Refused, config: Path, run: Path, tmp_path: Path) -> None:
    for option in ("--json", "--save-detections"):
        says(refused(cli.evaluate, run, option, config / "out.json"), str(config), "cannot make this output folder")
        says(
            refused(cli.evaluate, run, option, tmp_path),
            f"{option} {tmp_path}: expected a file to write, found a folder",
        )


# ---- training


def test_loss_that_is_not_finite_names_the_images(refused: Refused, config: Path) -> None:
    message = refused(cli.train, config, "--set", "train.optimizer.lr=1e30", "--set", "train.epochs=3")
    says(message, "loss is not finite at step", "nan", "images: train_0000", "train.optimizer.lr", "train.clip_norm")


# ---- proposals, and what goes wrong in a worker


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of Fast R-CNN with two workers; nothing may change it."""
    return train_tiny(tmp_path_factory.mktemp("fast"), model=FAST, loader={"workers": 2})


@pytest.fixture
def shapes(fast: Path, tmp_path: Path) -> Path:
    """Its data and their proposals, to be damaged."""
    return Path(shutil.copytree(fast.with_name("shapes"), tmp_path / "shapes"))


@pytest.mark.long
def test_proposals_cut_short(refused: Refused, fast: Path, shapes: Path) -> None:
    for path in shapes.rglob("*_00001.jpg-*.npy"):
        path.write_bytes(path.read_bytes()[:-8])
    root = ("--set", f"data.root={shapes}")
    for split, message in {
        "train": refused(cli.train, fast.with_name("tiny.yaml"), *root),
        "val": refused(cli.evaluate, fast, *root),
    }.items():
        says(message, f"{split}_00001.jpg-", ".npy: cannot read these proposals: ", "; remove the file")
        assert message.startswith(str(shapes))
        assert len(message.splitlines()) == 1
    says(refused(cli.proposals, fast.with_name("tiny.yaml"), *root), "val_00001.jpg-", "remove the file")


def test_a_picture_lost_while_the_workers_read(
    refused: Refused, fast: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it was checked, and its proposals found."""
    from detkit.engine import evaluate, validation

    def lose(dataset: ImageDataset, *options: Any) -> DetectionStore:
        for path in shapes.rglob("*_00001.jpg"):
            path.unlink()
        return detection_store(dataset, *options)

    monkeypatch.setattr(validation, "detection_store", lose)
    monkeypatch.setattr(evaluate, "detection_store", lose)
    pictures = shutil.copytree(shapes / "VOC2007/JPEGImages", "pictures")
    for split, tool, what in (("val", cli.evaluate, fast), ("train", cli.train, fast.with_name("tiny.yaml"))):
        message = refused(tool, what, "--set", f"data.root={shapes}")
        assert message == f"the picture {shapes}/VOC2007/JPEGImages/{split}_00001.jpg does not exist\n"
        shutil.copytree(pictures, shapes / "VOC2007/JPEGImages", dirs_exist_ok=True)


@pytest.mark.long
def test_a_full_disk_while_proposals_are_kept(
    refused: Refused, fast: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(file: Any, boxes: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for path in shapes.rglob("*.npy"):
        path.unlink()
    monkeypatch.setattr(np, "save", save)
    arguments = (fast.with_name("tiny.yaml"), "--set", f"data.root={shapes}")
    for tool in (cli.proposals, cli.train):
        message = refused(tool, *arguments)
        says(message, ".jpg-", ".npy: cannot keep these proposals: No space left on device")
        assert len(message.splitlines()) == 1
    assert not list(shapes.rglob("*.tmp"))


def test_sources_of_proposals(refused: Refused, fast: Path) -> None:
    config = fast.with_name("tiny.yaml")

    def message_of(proposals: str) -> str:
        return refused(cli.train, config, "--set", f"model.proposals={proposals}")

    says(message_of("{max_boxes: 9}"), "model.proposals.name: missing", "selective_search, file, detector")
    says(message_of("{name: edge_boxes}"), "model.proposals.name: 'edge_boxes' is not known")
    says(message_of("{name: file, paths: []}"), "model.proposals.paths: ", "at least 1 item")
    says(message_of("{name: file, paths: [a.mat]}"), "model.proposals.paths: a.mat: No such file")
    says(message_of("{name: detector, source: nowhere}"), "model.proposals.source: nowhere: no such checkpoint")
    says(message_of(f"{{name: detector, source: {fast}}}"), "model.proposals.source", "has no region proposal network")
    Path("a.json").write_text("[]")
    says(message_of("{name: file, paths: [a.json]}"), "a.json: no entry for 6 of 6", "'train_00000'", "known are none")
    says(
        refused(cli.proposals, config, "--set", "model.proposals={name: file, paths: [a.json]}"), "no entry for 3 of 3"
    )


# ---- prediction


def test_pictures_that_cannot_be_read(refused: Refused, config: Path, run: Path) -> None:
    cv2.imwrite("cut.jpg", np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    Path("cut.jpg").write_bytes(Path("cut.jpg").read_bytes()[:-600])
    Path("text.jpg").write_text("hello")
    Path("text.avi").write_text("hello")
    Path("bare").mkdir()

    def message_of(*files: object) -> str:
        return refused(cli.predict, run, *files, "--output", "out")

    says(message_of("nowhere.jpg"), "nowhere.jpg: no such file or folder")
    says(message_of("bare"), "bare: no picture or video", ".jpg", ".mp4")
    says(message_of(config), "tiny.yaml: no picture or video", ".jpg")
    says(message_of("cut.jpg"), "cut.jpg cannot be decoded")
    says(message_of("text.jpg"), "text.jpg cannot be decoded: it is no picture")
    says(message_of("text.avi"), "text.avi: ", "video")


def test_broken_png(refused: Refused, run: Path) -> None:
    """Data that end too early: Pillow takes what follows for a chunk and raises SyntaxError, no OSError."""
    cv2.imwrite("a.png", np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    content = bytearray(Path("a.png").read_bytes())
    place = content.index(b"IDAT")
    content[place - 4 : place] = (99).to_bytes(4, "big")
    Path("a.png").write_bytes(content)
    says(refused(cli.predict, run, "a.png", "--output", "out"), "a.png cannot be decoded")


def test_drawing_would_overwrite_its_picture(refused: Refused, run: Path) -> None:
    write_picture(Path("x/deep/a.png"))
    before = Path("x/deep/a.png").read_bytes()
    for arguments in (("x", "--output", "x"), ("x/deep/a.png", "--output", "x/../x/deep")):
        message = refused(cli.predict, run, *arguments)
        says(message, "a.png: its drawing would overwrite it", "--output")
    assert Path("x/deep/a.png").read_bytes() == before


def test_json_is_written_without_nan(run: Path, tmp_path: Path) -> None:
    """Not a mistake, but the other half: what is written can be read by strict readers."""
    assert cli.evaluate([str(run), "--json", str(tmp_path / "deep" / "out.json")]) == 0

    def fail(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "deep" / "out.json").read_text(), parse_constant=fail)


@pytest.mark.parametrize("redirected", [True, False], ids=["file", "pipe"])
def test_json_to_stdout(run: Path, tmp_path: Path, redirected: bool) -> None:
    """A file cannot take the place of /dev/stdout, and what was printed before must stay."""
    command = [sys.executable, "-m", "detkit", "eval", str(run), "--protocol", "voc07", "--json", "/dev/stdout"]
    with (tmp_path / "out.txt").open("w") as file:
        done = subprocess.run(
            command, stdout=file if redirected else subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out.txt").read_text() if redirected else done.stdout
    assert text.startswith(f"{run}\n")
    assert json.loads(text[text.index("\n{") :])["voc07"].keys() == {"mAP", "per_class"}
    assert Path("/dev/stdout").is_symlink()

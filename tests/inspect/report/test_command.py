"""`detkit report`: runs, two runs, the results of other tools, and what users get wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from detkit import cli
from detkit.engine.environment import FILE
from detkit.inspect.report.pictures import KINDS
from tests.cli_support import train_tiny
from tests.inspect.report.scenes import Page

QUICK = ["--no-doctor"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one epoch, so that its detector is poor."""
    return train_tiny(tmp_path_factory.mktemp("runs"))


def report(output: Path, *arguments: str | Path) -> Page:
    assert cli.main(["report", *map(str, arguments), "--output", str(output)]) == 0
    assert output.stat().st_size < 15e6
    return Page(output.read_text(encoding="utf-8"))


def refused(output: Path, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line for the user; nothing is written."""
    capsys.readouterr()
    assert cli.main(["report", *map(str, arguments), "--output", str(output)]) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(message) == 1
    assert not output.is_file()
    return message[0]


def test_a_run_has_every_part(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "folder" / "report.html"
    page = report(output, run)
    assert f"{output}: " in capsys.readouterr().out
    assert {"headline", "scores", "errors", "pictures", "run", "doctor"} <= set(page.values("id"))
    assert "sampling_ratio: 2" in page.text, "the configuration has the defaults that the file leaves out"
    for text in ("3 images", "Training loss", "Learning rate", "Validation", "seed 0", "1 epochs, 2 steps", "minutes"):
        assert text in page.text
    environment = json.loads((run / FILE).read_text())[0]
    assert f"torch {environment['packages']['torch']}" in page.text
    assert len([tag for tag, _ in page.tags if tag == "image"]) <= 3


def test_two_runs_are_compared(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    page = report(tmp_path / "report.html", run, tmp_path / "again", *QUICK)
    assert "It may be noise" in page.text, "a run and its copy do not differ"
    assert {"d1", "d2"} == set(page.values("data-panel"))
    assert "doctor" not in page.values("id")


def test_a_checkpoint_with_nothing_beside_it(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "last.pt", tmp_path / "alone.pt")
    page = report(tmp_path / "report.html", tmp_path / "alone.pt", *QUICK)
    assert "There are no records of the training beside the checkpoint." in page.text
    assert "Training loss" not in page.text
    assert "1 epochs, 2 steps" in page.text


def test_a_run_that_was_never_validated_and_one_of_an_earlier_detkit(run: Path, tmp_path: Path) -> None:
    """It ended after its first epoch: there is no best.pt, no validation, and here no environment."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("best.pt", FILE):
        (folder / name).unlink()
    records = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    (folder / "metrics.jsonl").write_text("\n".join([*records, '{"kind": "val", "st']))
    page = report(tmp_path / "report.html", folder, *QUICK)
    assert "Training loss" in page.text
    assert "Validation" not in page.text
    assert "packages" not in page.text


def test_a_detector_that_detects_nothing(run: Path, tmp_path: Path) -> None:
    import torch

    state = torch.load(run / "last.pt", weights_only=False)
    state["config"] = state["config"].replace("score_threshold: 0.05", "score_threshold: 1.0")
    torch.save(state, tmp_path / "blind.pt")
    page = report(tmp_path / "report.html", tmp_path / "blind.pt", *QUICK)
    assert " 0 detections" in page.text
    assert {card["data-kind"] for card in page.cards()} == {"missed"}


def test_results_of_another_tool_with_and_without_pictures(run: Path, tmp_path: Path) -> None:
    results, truth = tmp_path / "results.json", tmp_path / "instances.json"
    pictures = sorted((run.parent / "shapes").rglob("val_*.jpg"))
    assert len(pictures) == 3
    images = [{"id": n, "file_name": p.name, "width": 200, "height": 150} for n, p in enumerate(pictures)]
    objects = [
        {"id": n + 1, "image_id": n, "category_id": 7, "bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0}
        for n in range(3)
    ]
    truth.write_text(json.dumps({"images": images, "annotations": objects, "categories": [{"id": 7, "name": "thing"}]}))
    detections = [{"image_id": n, "category_id": 7, "bbox": [10, 10, 50, 40 - 8 * n], "score": 0.9} for n in range(3)]
    results.write_text(json.dumps(detections))
    arguments = ["--ground-truth", truth, "--detections", results]
    page = report(tmp_path / "plain.html", *arguments)
    assert "3 objects of 1 class " in page.text
    assert len([1 for _, attributes in page.tags if attributes.get("class") == "ground"]) == 3
    page = report(tmp_path / "pictures.html", *arguments, "--images", pictures[0].parent)
    assert len([tag for tag, _ in page.tags if tag == "image"]) == 3
    other = tmp_path / "others.json"
    other.write_text(json.dumps(detections[:2]))
    page = report(tmp_path / "two.html", "--ground-truth", truth, "--detections", results, other)
    assert "-1 for B" in page.text
    assert {card["data-kind"] for card in page.cards()} <= set(KINDS)


def test_a_run_without_a_checkpoint_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("last.pt", "best.pt"):
        (folder / name).unlink()
    assert "last.pt: no such checkpoint" in refused(tmp_path / "report.html", capsys, folder)


def test_the_second_source_is_looked_at_before_the_first_is_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detkit.inspect.report.subject.evaluate_detector", lambda *_, **__: pytest.fail("measured"))
    assert "nowhere: no such checkpoint" in refused(tmp_path / "report.html", capsys, run, "nowhere")
    options = ("--set", "model.roi.hidden=[16, 16, 16]")
    assert "run is trained, and this needs other weights" in refused(tmp_path / "r.html", capsys, run, *options)


def test_broken_lines_of_the_record_are_counted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "step": 3, "epoch"\n{"kind": "train"}\n\n\xff\n')
    page = report(tmp_path / "report.html", folder, *QUICK)
    assert "3 broken lines left out of the curves" in page.text
    assert "Training loss" in page.text
    assert "0.0 MB" not in capsys.readouterr().out, "the size of a small page is in kB"
    assert "broken lines" not in report(tmp_path / "report.html", run, *QUICK).text


def test_two_runs_on_other_data_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"name": "shapes", "root": str(tmp_path / "shapes"), "num_train": 4, "num_val": 2}
    other = train_tiny(tmp_path / "other", data=data)
    message = refused(tmp_path / "report.html", capsys, run, other)
    assert "on other data: image" in message
    page = report(tmp_path / "same.html", run, other, "--config", run.parent / "tiny.yaml", *QUICK)
    assert "Difference" in page.text, "on the same data they are compared"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a", "b", "c"], "expected one run, or two to compare, found 3"),
        (["a", "--detections", "b.json"], "reads results instead of running a detector"),
        (["a", "--images", "folder"], "goes with --detections"),
        (["--detections", "b.json"], "expected one thing to measure on|no such file"),
        (["nowhere"], "nowhere"),
    ],
)
def test_arguments_that_do_not_fit(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(tmp_path / "report.html", capsys, *arguments)
    assert any(part in message for part in expected.split("|"))


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "found a folder; name a file in it" in refused(tmp_path, capsys, run)
    assert "expected a name that ends in .html" in refused(tmp_path / "last.pt", capsys, run)
    (tmp_path / "file").write_text("")
    assert "cannot make this output folder" in refused(tmp_path / "file" / "report.html", capsys, run)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "this output folder is not writable" in refused(tmp_path / "report.html", capsys, run)
    old = tmp_path / "old.html"
    old.write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != old)
    assert cli.main(["report", str(run), "--output", str(old)]) == 2
    assert "this file is not writable" in capsys.readouterr().err
    assert old.read_text() == "old"

"""What a run writes down."""

import json
from pathlib import Path
from typing import Any

import pytest

from detkit.engine.log import RunLog


def run_epochs(log: RunLog, epochs: list[int], steps: int = 5) -> None:
    """Step s has the losses a = s and b = 10 s; a validation ends each epoch."""
    for epoch in epochs:
        done = epoch * steps
        for index in log.progress(range(steps), done=done, total=10 * steps, title="epoch"):
            step = done + index + 1
            log.losses({"a": float(step), "b": 10.0 * step})
            log.step(step, epoch + 1, 0.1, last=index + 1 == steps)
        log.validation(done + steps, epoch + 1, {"mAP": epoch / 10})
    log.close()


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_means_since_the_last_line_and_one_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    run_epochs(RunLog(tmp_path, log_every=3), [0])
    assert read(tmp_path) == [
        {"kind": "train", "step": 3, "epoch": 1, "lr": 0.1, "loss": 22.0, "a": 2.0, "b": 20.0},
        {"kind": "train", "step": 5, "epoch": 1, "lr": 0.1, "loss": 49.5, "a": 4.5, "b": 45.0},
        {"kind": "val", "step": 5, "epoch": 1, "mAP": 0.0},
    ]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    for name in ("straight", "resumed"):
        (tmp_path / name).mkdir()
    run_epochs(RunLog(tmp_path / "straight", log_every=3), [0, 1, 2])
    run_epochs(RunLog(tmp_path / "resumed", log_every=3), [0, 1])  # the second epoch is lost with its checkpoint
    run_epochs(RunLog(tmp_path / "resumed", log_every=3, resume_step=5), [1, 2])
    assert read(tmp_path / "resumed") == read(tmp_path / "straight")


def test_a_new_run_in_an_old_folder_starts_its_own_records(tmp_path: Path) -> None:
    run_epochs(RunLog(tmp_path), [0, 1])
    run_epochs(RunLog(tmp_path), [0])
    assert [record["step"] for record in read(tmp_path)] == [5, 5]


def test_only_the_first_process_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, enabled=False)
    run_epochs(log, [0])
    log.message("hello")
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_items_are_passed_through_as_often_as_asked(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    items = log.passes(range(3), "finishing")
    assert [list(items), list(items)] == [[0, 1, 2], [0, 1, 2]]
    log.close()

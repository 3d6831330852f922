"""Ctrl-C, SIGTERM and SIGKILL in every part of a training: it goes on to the result of an undisturbed run."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from detkit import cli
from detkit.engine import train as engine
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.train import Run
from detkit.engine.validation import Validation
from tests.faults.small import check_same, train_again

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
Stage = tuple[Any, str, int]  # where a function lies, its name, and at which of its calls the signal comes

STAGES: dict[str, Stage] = {
    "while the data are checked": (engine, "build_dataset", 1),
    "before the first step": (engine, "save_config", 1),
    "in the first epoch": (Run, "backward", 2),
    "in the second epoch": (Run, "backward", 5),
    "while a checkpoint is written": (torch, "save", 1),
    "while the second checkpoint is written": (torch, "save", 3),  # after `last.pt` and `best.pt` of the first epoch
    "in a validation": (Validation, "measure", 1),
    "in the last validation": (Validation, "measure", 2),
    "while the last records are written": (engine, "record_minutes", 1),
}


def send(number: signal.Signals, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process gets the signal in the middle of a call, and before it the workers of its loader.

    They get it from another process, as from a scheduler: what this process sends to its workers ends them.
    """
    where, name, call = stage
    original: Callable[..., Any] = getattr(where, name)
    calls = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            if name == "save":
                arguments[1].write(b"the first part of an archive")
            for worker in multiprocessing.active_children():
                subprocess.run(["kill", f"-{number.value}", str(worker.pid)], check=True)
            signal.raise_signal(number)
        return original(*arguments, **options)

    monkeypatch.setattr(where, name, interrupted)


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_is_one_line_and_the_run_goes_on(
    stage: str, config: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        send(signal.SIGINT, STAGES[stage], patch)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's workers ignore it
        try:
            status = cli.train([str(config), "--output", str(tmp_path / "run")])
        finally:
            signal.signal(signal.SIGINT, before)
    assert status == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "interrupted; a training run goes on with --resume"
    assert not any("Traceback" in line for line in lines)
    assert not list(tmp_path.rglob("*.writing"))
    assert train_again(config, tmp_path / "run") == 0
    check_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_sigterm_saves_after_the_step_and_leaves(
    call: int, config: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        send(signal.SIGTERM, (Run, "backward", call), patch)
        assert cli.train([str(config), "--output", str(tmp_path / "run")]) == 143
    output = capsys.readouterr()
    assert f"SIGTERM: saved after step {call}" in output.out
    assert output.err.splitlines()[-1] == "interrupted; a training run goes on with --resume"
    state = load_checkpoint(tmp_path / "run/last.pt")
    assert (state["step"], state["epoch"], state["batches"]) == (call, call // 3, call % 3)
    assert train_again(config, tmp_path / "run") == 0
    for name in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(folder / name)["model"] for folder in (tmp_path / "run", undisturbed))
        assert all(torch.equal(one[key], value) for key, value in two.items())
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in records if row["kind"] == "val"] == [1, 2]


@pytest.mark.parametrize("stage", ["while the data are checked", "in a validation"])
def test_sigterm_outside_of_an_epoch_ends_at_once(
    stage: str, config: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        send(signal.SIGTERM, STAGES[stage], patch)
        assert cli.train([str(config), "--output", str(tmp_path / "run")]) == 143
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; a training run goes on with --resume"
    assert signal.getsignal(signal.SIGTERM) == before
    assert train_again(config, tmp_path / "run") == 0
    check_same(tmp_path / "run", undisturbed)


def test_sigterm_with_random_gradients_accumulation_and_workers(config: Path, tmp_path: Path) -> None:
    """The random numbers of torch go on where they were, and no group of batches is cut."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # from now on, torch starts a thread in each process that is forked
    torch.set_num_threads(threads)
    tree = yaml.safe_load(config.read_text())
    tree["train"] |= {"batch_size": 1, "accumulate": 4, "epochs": 1}
    tree["loader"] = {"workers": 1}
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(tree))

    with pytest.MonkeyPatch.context() as patch:
        backward = Run.backward

        def noisy(run: Run, *arguments: Any) -> Any:
            losses = backward(run, *arguments)
            for parameter in run.detector.parameters():
                if parameter.grad is not None:
                    parameter.grad += 0.01 * torch.rand(())
            return losses

        patch.setattr(Run, "backward", noisy)
        assert cli.train([str(other), "--output", str(tmp_path / "straight")]) == 0
        with pytest.MonkeyPatch.context() as second:
            send(signal.SIGTERM, (Run, "backward", 1), second)  # of three more batches, the loader has two
            assert cli.train([str(other), "--output", str(tmp_path / "run")]) == 143
        state = load_checkpoint(tmp_path / "run/last.pt")
        assert (state["step"], state["batches"]) == (1, 4)
        assert train_again(other, tmp_path / "run") == 0
    one, two = (load_checkpoint(tmp_path / name / "last.pt")["trained"] for name in ("run", "straight"))
    assert all(torch.equal(one[key], value) for key, value in two.items())


def test_runs_that_are_killed_at_random_moments(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/kills.py"), "--kills", "2", "--epochs", "2"]
    done = subprocess.run([*command, "--json", str(tmp_path / "kills.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "kills.json").read_text())
    assert (figures["kills"], figures["unreadable"], figures["equal"]) == (2, 0, True)
    assert figures["resumes"] >= 1

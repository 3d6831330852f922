"""A run folder belongs to one process at a time, is never left half written, and goes on from whatever is in it."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detkit import cli
from detkit.config import UserError, load_config
from detkit.engine.checkpoint import load_checkpoint, save_checkpoint
from detkit.engine.events import EventFile
from detkit.engine.log import RunLog, draw_curves
from detkit.engine.run import prepare_run, save_config
from detkit.engine.run_folder import claim_folder
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.engine.train import Run
from detkit.files import write_text
from tests.cli_support import write_config
from tests.engine.settings import torchrun

FORK = multiprocessing.get_context("fork")
Start = dict[str, Any]  # what `prepare_run` takes


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch, `run`; its configuration is `tiny.yaml` beside it."""
    folder = tmp_path_factory.mktemp("original")
    assert cli.train([str(write_config(folder / "tiny.yaml")), "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def config(original: Path) -> Path:
    return original.with_name("tiny.yaml")


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def hold(start: Start, connection: Any) -> None:
    """In a process of its own: has the folder of a run until it is told to go on."""
    try:
        with prepare_run(**start) as (_, folder):
            worker = FORK.Process(target=time.sleep, args=(60,), daemon=True)  # as a loader has them
            worker.start()
            connection.send((str(folder), worker.pid))
            connection.recv()
            worker.kill()
    except UserError as error:
        connection.send((f"error: {error}", None))


@contextmanager
def another(**start: Any) -> Iterator[tuple[str, Any]]:
    """The folder, or the error, of another process that starts a run; and that process with the id of its worker."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(start, there))
    process.start()
    try:
        folder, worker = here.recv()
        yield folder, (process, worker)
    finally:
        if process.is_alive():
            here.send("go on")
        process.join()


# ---- one process at a time


def test_each_of_several_processes_has_a_default_folder_of_its_own(config: Path) -> None:
    with another(config=config) as (one, _), another(config=config) as (two, _), another(config=config) as (three, _):
        assert [one, two, three] == ["runs/tiny", "runs/tiny-2", "runs/tiny-3"]
    assert not Path("runs").exists(), "none of them wrote anything"


def test_the_same_folder_is_refused_in_one_line(
    config: Path, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(run, "again")
    before = {path: path.stat().st_mtime_ns for path in (run / "config.yaml", run / "metrics.jsonl")}
    for start, arguments in (
        ({"config": config, "output": "mine"}, [str(config), "--output", "mine"]),
        ({"config": config, "output": "mine"}, [str(config), "--output", str(tmp_path / "mine")]),
        ({"config": None, "resume": run}, ["--resume", str(run), "--set", "train.epochs=2"]),
        ({"config": None, "resume": run}, [str(config), "--resume", "run"]),
    ):
        with another(**start):
            assert cli.train(arguments) == 2
        message = capsys.readouterr().err.strip()
        assert "another process is writing in this folder; wait until it ends, or name another" in message
        assert len(message.splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with another(config=None, resume=run) as (folder, _):
        assert folder == str(run)
        with prepare_run(None, resume="again"):
            pass


def test_a_process_that_is_killed_does_not_block(config: Path) -> None:
    with another(config=config, output="mine") as (_, (process, worker)):
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            os.kill(worker, 0)  # a worker outlives it for a while
            with prepare_run(config, output="mine") as (_, folder):
                assert folder == Path("mine")
        finally:
            os.kill(worker, signal.SIGKILL)


def try_claims(folder: Path, connection: Any) -> None:
    """In a process of its own: whether it may have the folder, each time it is asked."""
    while connection.recv():
        try:
            with claim_folder(folder):
                connection.send(True)
        except UserError:
            connection.send(False)


def test_the_claim_of_detkit_train_is_that_of_the_loop(tmp_path: Path) -> None:
    here, there = FORK.Pipe()
    other = FORK.Process(target=try_claims, args=(tmp_path / "mine", there), daemon=True)
    other.start()

    def other_may_have_it() -> bool:
        here.send(True)
        return bool(here.recv())

    with claim_folder(tmp_path / "mine"):
        with claim_folder(Path("mine")):
            (tmp_path / "mine/metrics.jsonl").touch()
        assert not other_may_have_it()
    assert other_may_have_it()
    here.send(False)
    other.join()
    assert os.listdir("mine") == ["metrics.jsonl"]


def test_a_file_system_without_locks_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_lock)
    with claim_folder(Path("mine")):
        assert Path("mine").is_dir()
    assert "note: mine/.lock: no locks here" in capsys.readouterr().err


@pytest.mark.long
def test_the_processes_of_torchrun_share_one_folder(config: Path, tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(
        "import os\n"
        "from detkit.config import UserError\n"
        "from detkit.engine.distributed import process_group\n"
        "from detkit.engine.run import prepare_run\n"
        "from detkit.engine.run_folder import claim_folder\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "rank = os.environ['RANK']\n"
        "with process_group('cpu'):\n"
        f"    with prepare_run({str(config)!r}) as (_, folder), claim_folder(folder):\n"
        "        (folder / rank).touch()\n"
        "    try:\n"
        f"        with prepare_run({str(config)!r}, output='file'): pass\n"
        "    except UserError as error:\n"
        "        (folder / f'error {rank}').touch()\n"
    )
    (tmp_path / "file").touch()
    torchrun(tmp_path / "start.py")
    assert os.listdir("runs") == ["tiny"]
    assert sorted(os.listdir("runs/tiny")) == ["0", "1", "error 0", "error 1"]


# ---- nothing is left of a run that never began


@pytest.mark.parametrize("problem", ["data.root=nowhere", "data.name=voc", "device=cuda:7", "train.epoch=2"])
def test_a_configuration_that_fails_leaves_no_folder(problem: str, config: Path) -> None:
    voc = "data={name: voc, root: nowhere, train: [2007_train], val: [2007_val]}"
    settings = ["--set", voc, "--set", problem]
    Path("here").mkdir()
    for arguments in ([], ["--output", "new/deep"], ["--output", "here"]):
        assert cli.train([str(config), *settings, *arguments]) == 2
    assert os.listdir() == ["here"]
    assert os.listdir("here") == []


# ---- going on


def test_a_run_that_died_in_its_first_epoch_starts_from_the_beginning(
    config: Path, original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(self: Run, *_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "optimizer_step", die)
        assert cli.train([str(config), "--output", "died"]) == 130
    assert not Path("died/last.pt").exists()
    capsys.readouterr()
    assert cli.train(["--resume", "died"]) == 0
    assert (
        "died: no checkpoint yet, the run ended in its first epoch; it starts from the beg" in capsys.readouterr().out
    )
    resumed, straight = (load_checkpoint(folder / "last.pt")["model"] for folder in (Path("died"), original))
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())
    assert Path("died/metrics.jsonl").read_text() == (original / "metrics.jsonl").read_text()


def test_other_settings_go_through_init(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = ("train.optimizer.lr=0.5", "train.batch_size=2", "train.schedule={name: cosine}")
    assert cli.train(["--resume", str(run), *(part for item in changed for part in ("--set", item))]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert any("train.optimizer.lr: the run has 0.01, asked for 0.5" in line for line in lines)
    assert lines[-1].strip() == f"for other settings start a new run from its weights: train CONFIG --init {run}"
    (run / "last.pt").unlink()
    assert cli.train(["--resume", str(run), "--set", "train.batch_size=2"]) == 2
    assert f"remove {run} and start anew" in capsys.readouterr().err


def test_fewer_epochs_than_are_done_change_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.train(["--resume", str(run), "--set", "train.epochs=2"]) == 0
    before = (run / "config.yaml").read_text()
    assert cli.train(["--resume", str(run), "--set", "train.epochs=1"]) == 2
    assert "the run has done 2 epochs, asked for 1" in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == before
    assert "epochs: 2" in before


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"cut"), Path.unlink])
def test_the_best_checkpoint_is_named_where_the_last_cannot_be_read(
    damage: Callable[[Path], Any], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "last.pt")
    instead = f"{run}/best.pt is whole: name it instead of the run, or train on from its weights with --init"
    assert cli.train(["--resume", str(run)]) == 2
    assert instead in capsys.readouterr().err
    with pytest.raises(UserError, match=instead):
        load_detector(run)
    (run / "best.pt").write_bytes(b"cut")
    with pytest.raises(UserError) as caught:
        load_detector(run)
    assert "best.pt" not in str(caught.value)


# ---- a full disk


@contextmanager
def no_space(path: Path) -> Iterator[None]:
    """What is written aside, to take the place of `path`, finds no space left."""
    path.with_name(f".{path.name}.writing").symlink_to("/dev/full")
    yield


RECORDS = [{"kind": "train", "step": 1, "epoch": 1, "loss": 1.0}]
WRITERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": lambda path: save_config(path.parent, load_config("tiny.yaml", RunConfig)),
    "metrics.jsonl": lambda path: write_text(path, "ü"),
    "curves.png": lambda path: draw_curves(RECORDS, path),
    "last.pt": lambda path: save_checkpoint(path, {"model": {"weight": torch.zeros(9)}}),
    "large.pt": lambda path: save_checkpoint(path, {"model": {"weight": torch.zeros(99999)}}),
    "numbers.json": lambda path: cli.command.write_json(path, [1, 2]),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_full_disk_is_one_line_and_keeps_what_was_there(
    name: str, before: bytes | None, config: Path, tmp_path: Path
) -> None:
    shutil.copy(config, "tiny.yaml")
    path = tmp_path / name
    if before:
        path.write_bytes(before)
    with no_space(path), pytest.raises(UserError) as caught:
        WRITERS[name](path)
    assert str(caught.value) == f"{path}: cannot write: No space left on device"
    assert not path.with_name(f".{name}.writing").is_symlink()
    if before:
        assert path.read_bytes() == before


@contextmanager
def space_for(number: int) -> Iterator[None]:
    """No file can become longer than this many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # Python would keep halves of compiled modules
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = written


@pytest.mark.parametrize("room", [0, 1, 1000, 64 * 1024, 390_000])
def test_a_disk_that_fills_up_in_the_middle_of_a_checkpoint(room: int, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    with space_for(room), pytest.raises(UserError, match=r"last.pt: cannot write: File too large$"):
        save_checkpoint(path, {"step": 2, "model": {str(index): torch.zeros(10_000) for index in range(10)}})
    assert load_checkpoint(path)["step"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


def test_records_and_events_of_a_full_disk(tmp_path: Path) -> None:
    log = RunLog(tmp_path, log_every=1)
    for _ in log.progress(range(1), done=0, total=1, title="epoch"):
        log.losses({"a": 1.0})
        with space_for(10), pytest.raises(UserError, match=r"metrics.jsonl: cannot write: File too large"):
            log.step(1, 1, 0.1, last=False)
    events = EventFile(tmp_path)
    with space_for(10), pytest.raises(UserError, match=r"events.out.tfevents.*: cannot write: File too large"):
        events.add(1, {"a": 1.0})


def test_drawings_and_videos_of_a_full_disk(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 96, 128, 3)).astype(np.uint8)
    cv2.imwrite("a.png", frames[0])
    writer = cv2.VideoWriter("b.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 5, (128, 96))
    for frame in frames:
        writer.write(frame)
    writer.release()
    with space_for(1000):
        assert cli.predict([str(run), "a.png", "--output", "out"]) == 2
        assert cli.predict([str(run), "b.mp4", "--output", "out"]) == 2
    first, second = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert first == "error: out/a.png: cannot write: File too large"
    assert re.fullmatch(r"error: out/\S+: cannot write: File too large", second)


def test_a_full_disk_ends_a_command_with_one_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where detkit does not write the file itself."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere")

    monkeypatch.setattr("detkit.engine.train.train_config", refuse)
    assert cli.train([str(config)]) == 2
    assert capsys.readouterr().err == "error: /somewhere: cannot write: No space left on device\n"
    assert json.dumps(os.listdir()) == "[]"

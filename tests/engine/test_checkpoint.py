"""A checkpoint is whole or an error of one line, and runs no code."""

import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.config import UserError
from detkit.engine.checkpoint import FORMAT, CheckpointError, load_checkpoint, save_checkpoint
from tests.engine.settings import differences


def make_state(step: int = 3) -> dict[str, Any]:
    return {
        "model": {"weight": torch.full((200_000,), float(step)), "count": torch.tensor(7)},
        "optimizer": {"state": {0: {"momentum": torch.randn(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "categories": {"names": ["dog", "cat"], "ids": [1, 2]},
        "step": step,
    }


def load_error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_round_trip(tmp_path: Path) -> None:
    state = make_state()
    save_checkpoint(tmp_path / "last.pt", state)
    assert differences(load_checkpoint(tmp_path / "last.pt"), {"format": FORMAT, **state}) == []
    assert os.listdir(tmp_path) == ["last.pt"]


class Harmful:
    """What a pickle may do when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_code_in_a_file_is_not_run(save: Any, tmp_path: Path) -> None:
    save({"format": FORMAT, "model": Harmful(tmp_path / "harmed")}, tmp_path / "last.pt")
    assert "not a detkit checkpoint" in load_error(tmp_path / "last.pt")
    assert not (tmp_path / "harmed").exists()
    torch.load(tmp_path / "last.pt", weights_only=False) if save is torch.save else None
    assert (tmp_path / "harmed").exists() == (save is torch.save), "the file should be harmful when it is trusted"


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_file_cut_short(fraction: float, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_state())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    assert "is cut short" in load_error(path)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("model: {name: faster_rcnn}\n")
    load_error(path)
    for state in ({"model": {}}, [1, 2], torch.zeros(3), {"format": "another"}):
        torch.save(state, path)
        assert "expected the mark" in load_error(path)
    assert "no such checkpoint" in load_error(tmp_path / "missing.pt")
    assert "cannot read" in load_error(tmp_path)


def test_garbled_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "last.pt"
    for length in rng.integers(1, 60, 300).tolist():
        path.write_bytes(rng.integers(0, 256, length).astype(np.uint8).tobytes())
        load_error(path)
    for start in b"\x80(]}cRbq.aehstuKMJGBX\x8c\x94":  # the opcodes of pickle
        path.write_bytes(b"\x80\x02" + bytes([start]) * 3 + b".")
        load_error(path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"last.pt: cannot write: No such file"):
        save_checkpoint(tmp_path / "missing" / "last.pt", make_state())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_state(1))
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"model": (number for number in range(3))})
    assert load_checkpoint(path)["step"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


def save_for_ever(path: Path) -> None:
    torch.set_num_threads(1)  # a forked process does not have the threads that the pool of its parent believes in
    step = 1
    while True:
        save_checkpoint(path, make_state(step))
        step += 1


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_state(0))
    rng, written = np.random.default_rng(0), []
    for _ in range(8):
        writer = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path,))
        before = path.stat().st_ino
        writer.start()
        deadline = time.monotonic() + 60
        while path.stat().st_ino == before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        assert writer.pid
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        state = load_checkpoint(path)
        assert torch.equal(state["model"]["weight"], torch.full((200_000,), float(state["step"])))
        written.append(state["step"])
    assert min(written) >= 1, "a writer wrote nothing: nothing is tested"

"""A checkpoint is whole or an error of one line, and runs no code."""

import multiprocessing
import os
import pickle
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detkit.config import UserError
from detkit.engine.checkpoint import FORMAT, CheckpointError, check_numbers, load_checkpoint, save_checkpoint
from detkit.engine.sources import load_detector, read_weights
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


# ---- marked, but not what it should be


def source_error(path: Path, state: Any) -> str:
    """The one line of `load_detector` for a file with this content."""
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        load_detector(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    with pytest.raises(UserError, match=re.escape(message.removeprefix(f"{path}: ")[:40])):
        read_weights(str(path), nn.Linear(1, 1))  # type: ignore[arg-type]
    return message


def test_a_checkpoint_of_a_newer_detkit_is_called_so(tmp_path: Path, trained_run: Path) -> None:
    state = {**load_checkpoint(trained_run / "last.pt"), "format": "detkit checkpoint 2"}
    message = source_error(tmp_path / "new.pt", state)
    assert "a newer detkit wrote it: expected the mark 'detkit checkpoint 1', found 'detkit checkpoint 2'" in message


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"config": None}, "expected 'config', a str, found NoneType"),
        ({"model": [1]}, "expected 'model', a dict, found list"),
        ({"categories": ["cat"]}, "expected 'categories', a dict, found list"),
        ({"categories": {"names": ["cat"]}}, "'categories' should have a list of names and one of as many ids"),
        ({"categories": {"names": [1, 2], "ids": [1, 2]}}, "'categories' should have a list of names"),
        ({"model": {"w": 3}}, "expected a tensor as 'w' of its weights, found 3"),
    ],
)
def test_a_marked_file_of_other_parts(changes: dict[str, Any], found: str, tmp_path: Path, trained_run: Path) -> None:
    state = load_checkpoint(trained_run / "last.pt")
    assert found in source_error(tmp_path / "a.pt", {**state, **changes})


@pytest.mark.parametrize("part", ["config", "model", "categories"])
def test_a_marked_file_without_its_parts(part: str, tmp_path: Path, trained_run: Path) -> None:
    state = {key: value for key, value in load_checkpoint(trained_run / "last.pt").items() if key != part}
    assert f"expected {part!r}, " in source_error(tmp_path / "a.pt", state)


def test_weights_that_are_nan_are_refused_and_named(tmp_path: Path, trained_run: Path) -> None:
    state = load_checkpoint(trained_run / "last.pt")
    state["model"]["roi.classifier.weight"][0, 1] = torch.nan
    state["model"]["roi.regressor.weight"][:] = torch.nan
    message = source_error(tmp_path / "a.pt", state)
    count = state["model"]["roi.classifier.weight"].numel()
    assert f"its weights are not numbers: roi.classifier.weight has 1 nan of {count}" in message


def test_infinite_weights_are_none_of_that() -> None:
    """An SVM of a class without examples has a bias of -inf, and a sum of both infinities is nan."""
    check_numbers({"bias": torch.tensor([torch.inf, -torch.inf, 0.0]), "count": torch.tensor(3)}, "a.pt")

"""Two and three processes of torchrun: few and uneven pictures, accumulated batches, SIGTERM, and one that fails."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.engine.settings import read_metrics
from tests.faults.small import write_config

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]


def launch(processes: int, *script: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, *map(str, script)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that three processes of `run_group.py` leave: seven pictures, two of each process in a step."""
    root = tmp_path_factory.mktemp("group")
    config = write_config(root, pictures=7, batch_size=1, accumulate=2, epochs=1)
    (root / "data/VOC2007/ImageSets/Main/two.txt").write_text("000\n001\n")
    done = launch(3, "-m", "tests.faults.run_group", config, root)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.fixture
def result(group: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((group / "result.json").read_text())
    return content


def test_gradients_are_joined_in_the_last_of_accumulated_batches_alone(result: dict[str, Any]) -> None:
    """Seven pictures are three batches of the group, and so a step of two batches and one of a single one."""
    first, second, third = result["gradients"]
    assert len(set(first)) == 3, "each process has the gradient of its own picture"
    assert second[0] == second[1] == second[2]
    assert third[0] == third[1] == third[2], "two of three processes repeat the last picture"
    assert all(math.isfinite(norm) and norm > 0 for norm in (*first, *second, *third))


def test_sigterm_to_one_process_ends_all_after_the_same_step(result: dict[str, Any]) -> None:
    assert result["stopped"] == [2, 2, 2], "batches until then: one step of two"
    assert result["difference"] < 1e-6, "resumed, to the weights of an undisturbed run but for the order of sums"


@pytest.mark.parametrize("name", ["mask_rcnn.yaml", "yolox.yaml", "dino.yaml"])
def test_gradients_of_three_processes_are_the_mean_of_each_picture_alone(result: dict[str, Any], name: str) -> None:
    """With masks, with SimOTA, and with groups of noised queries, where one process has a picture without objects."""
    assert result["alone"][name] < 1e-4


def test_fewer_pictures_than_processes(group: Path, result: dict[str, Any]) -> None:
    """Two pictures, three processes: one repeats a picture in training; each is measured once."""
    assert result["images"] == 2
    assert len(read_metrics(group / "few", "train")) == 1


def test_a_process_that_fails_ends_the_group_with_its_message(tmp_path: Path) -> None:
    config = write_config(tmp_path, batch_size=1)
    (tmp_path / "fail.py").write_text(
        "import sys\n"
        "from detkit import cli\n"
        "from detkit.data.checks import DataError\n"
        "from detkit.engine import distributed\n"
        "from detkit.engine.train import Run\n"
        "backward = Run.backward\n"
        "def fail(run, *arguments):\n"
        "    if distributed.rank() == 1 and run.step == 1:\n"
        "        raise DataError('the picture 003.jpg does not exist')\n"
        "    return backward(run, *arguments)\n"
        "Run.backward = fail\n"
        "sys.exit(cli.train(sys.argv[1:]))\n"
    )
    begin = time.monotonic()
    done = launch(2, tmp_path / "fail.py", config, "--output", tmp_path / "run")
    assert time.monotonic() - begin < 120
    assert done.returncode != 0
    assert "error: the picture 003.jpg does not exist\n" in done.stderr
    assert "exitcode  : 2" in done.stderr

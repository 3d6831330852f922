"""The example of docs/use.md, run as it stands there: one's own backbone and data set, trained from Python."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit import cli
from detkit.config import UserError
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.optim import SGDConfig
from detkit.engine.run import save_config
from detkit.engine.settings import RunSettings, TrainConfig
from detkit.engine.sources import load_detector

ROOT = Path(__file__).resolve().parents[2]


def example() -> str:
    """The Python block under the heading `Your own detector and data, from Python` of docs/use.md."""
    page = (ROOT / "docs/use.md").read_text(encoding="utf-8")
    section = page.split("\n## Your own detector and data, from Python\n")[1]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]


def write_squares(folder: Path, count: int) -> None:
    """Pictures of 64 x 96 with one bright square or tall bar each, and `boxes.csv`: file, name, x1, y1, x2, y2."""
    folder.mkdir()
    rows = []
    for index in range(count):
        rng = np.random.default_rng(index)
        name, width, height = ("square", 24, 24) if index % 2 else ("bar", 12, 36)
        x, y = int(rng.integers(0, 96 - width)), int(rng.integers(0, 64 - height))
        image = rng.integers(0, 60, (64, 96, 3)).astype(np.uint8)
        image[y : y + height, x : x + width] = (40, 220, 220)
        cv2.imwrite(str(folder / f"{index}.png"), image)
        rows.append(f"{index}.png,{name},{x},{y},{x + width},{y + height}\n")
    (folder / "boxes.csv").write_text("".join(rows))


@pytest.mark.long
def test_the_example_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path / "pictures", 24)
    code = example()
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 30
    names: dict[str, object] = {"__name__": "example"}
    torch.manual_seed(0)
    exec(compile(code, "docs/use.md", "exec"), names)
    evaluation = names["evaluation"]
    assert evaluation.results["voc07"].score > 0.5  # type: ignore[attr-defined]
    state = load_checkpoint(tmp_path / "runs/own/last.pt")
    assert state["categories"]["names"] == ["bar", "square"]
    with pytest.raises(UserError, match=r"last.pt: its detector was built in Python, .* load the weights"):
        load_detector(tmp_path / "runs/own")


def test_classes_that_do_not_agree_are_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_squares(tmp_path / "pictures", 24)
    other_order = example().replace(
        "head, image_input, categories)", 'head, image_input, Categories.of_names(["square", "bar"]))'
    )
    with pytest.raises(UserError, match="the detector has the classes square, bar, but the training data bar, square"):
        exec(compile(other_order, "docs/use.md", "exec"), {"__name__": "example"})
    too_many = example().replace("num_classes=2", "num_classes=3")
    with pytest.raises(
        ValueError, match="the head has num_classes 3, expected 2, one for each of the categories bar, sq"
    ):
        exec(compile(too_many, "docs/use.md", "exec"), {"__name__": "example"})
    assert not (tmp_path / "runs").exists()


def test_a_run_from_python_is_not_resumed_by_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = RunSettings(train=TrainConfig(epochs=1, batch_size=2, optimizer=SGDConfig(lr=0.1)))
    save_config(tmp_path, settings)
    assert cli.train(["--resume", str(tmp_path)]) == 2
    assert "this run was started from Python" in capsys.readouterr().err

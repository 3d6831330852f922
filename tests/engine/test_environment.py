"""What a training runs with is written down, for its start and for each time that it is resumed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from detkit import cli
from detkit.config import UserError
from detkit.engine.environment import FILE, describe_environment, git_revision, read_environments, record_minutes
from tests.cli_support import train_tiny


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", str(folder), *settings, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_training_and_its_resumption_are_recorded(tmp_path: Path) -> None:
    run = train_tiny(tmp_path)
    assert cli.train(["--resume", str(run), "--set", "train.epochs=2"]) == 0
    first, second = json.loads((run / FILE).read_text())
    assert first["started"] <= second["started"]
    assert first["packages"]["torch"] == torch.__version__
    assert first["device"] == "cpu"
    assert first["threads"] == torch.get_num_threads()
    assert first["processes"] == 1
    assert 0 <= first["minutes"] < 10


def test_a_folder_of_an_earlier_detkit_or_a_broken_file_has_none(tmp_path: Path) -> None:
    assert read_environments(tmp_path) == []
    record_minutes(tmp_path, 1.5)
    assert not (tmp_path / FILE).exists()
    for text in ("{", '{"a": 1}', "\xff"):
        (tmp_path / FILE).write_bytes(text.encode("latin-1"))
        assert read_environments(tmp_path) == []


def test_the_revision_of_a_checkout_and_whether_it_was_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert git_revision(tmp_path) is None, "no commit yet"
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    revision = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "folder").mkdir()
    assert git_revision(tmp_path / "folder") == {"revision": revision, "changed": False}
    (tmp_path / "new").write_text("a run, perhaps")
    assert git_revision(tmp_path) == {"revision": revision, "changed": False}, "what git does not know is no change"
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == {"revision": revision, "changed": True}


def test_without_git_and_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert describe_environment(torch.device("cpu"))["git"] is None
    monkeypatch.setenv("PATH", "")
    assert git_revision(tmp_path) is None


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('[{"started": "2026-01-01T00:00:00+00:00"}]')
    (tmp_path / f".{FILE}.writing").symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"{FILE}: cannot write: No space left on device"):
        record_minutes(tmp_path, 0.0)

"""One small trained run for all tests that only need a detector on disk."""

from pathlib import Path

import pytest

from detkit.engine.train import train_config
from tests.engine.settings import make_config, write_pictures


@pytest.fixture(scope="package")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch on pictures of a cat and a dog."""
    root = tmp_path_factory.mktemp("trained")
    folder = root / "run"
    folder.mkdir()
    train_config(make_config(write_pictures(root / "data", 4), "train.epochs=1"), folder)
    return folder

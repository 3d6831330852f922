"""The run that nothing disturbed, with which disturbed ones are compared."""

from pathlib import Path

import pytest

from detkit import cli
from tests.faults.small import write_config


@pytest.fixture(scope="package")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="package")
def undisturbed(config: Path) -> Path:
    assert cli.train([str(config), "--output", str(config.with_name("run"))]) == 0
    return config.with_name("run")

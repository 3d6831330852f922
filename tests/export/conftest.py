"""Detectors as files of every format, written once; no test may change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detkit.export.program import Form
from tests.cli_support import train_tiny
from tests.export.detectors import Cells, write_exported

SSD: dict[str, Any] = {  # on one level of a LeNet-5: the least of the published ones to train and to export
    "name": "ssd",
    "backbone": {"name": "lenet5"},
    "neck": {"name": "extra_levels", "out_channels": [], "reduce": [], "l2_norm": None},
    "head": {
        "priors": {"min_sizes": [24], "max_sizes": [40], "ratios": [[2]], "steps": None},
        "selection": {"score_threshold": 0.05, "top_k_per_class": 50, "max_detections": 20},
    },
    "input": {"resize": {"name": "stretch", "size": 64}},
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`exported(suffix, rule, **form)`: the file of `Cells(rule)`; each is written when it is first asked for."""
    folder, files = tmp_path_factory.mktemp("exported"), {}

    def write(suffix: str, rule: str = "stretch", **form: Any) -> Path:
        key = suffix, rule, *form.items()
        if key not in files:
            own = folder / str(len(files))
            own.mkdir()
            files[key] = write_exported(Cells(rule), own / f"model{suffix}", Form(**form))
        return files[key]

    return write


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a small SSD on the shapes."""
    return train_tiny(tmp_path_factory.mktemp("trained"), model=SSD)

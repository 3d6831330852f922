"""Shared by all tests: where the real data lies, when it lies anywhere."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("DETKIT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets and evaluator references (DETKIT_SHARED_DATA); tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED}; set DETKIT_SHARED_DATA to its folder")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))

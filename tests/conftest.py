"""Shared by all tests: where the real data lies, when it lies anywhere."""

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from detkit.accelerate.memory import keep_memory

keep_memory()  # as detkit's tools do; it saves a tenth of the time of the contract tests
SHARED = Path(os.environ.get("DETKIT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The check of pictures writes what it found here, and not into the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets and evaluator references (DETKIT_SHARED_DATA); tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED}; set DETKIT_SHARED_DATA to its folder")
    return SHARED


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests and the libraries stay in memory until the end: collections of garbage leave them out.

    They are rarer, too, which saves 6% of the time of what makes most objects, the exports.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))

"""No garbage collection while large libraries are imported, nor of their objects later; the rest is as in Python."""

import gc
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from detkit.accelerate import imports


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a module that counts as large, and says whether garbage collection was on while it was imported."""
    file = tmp_path / "large_library.py"
    file.write_text("import gc\nENABLED = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "detkit" not in str(type(finder))])
    monkeypatch.setattr(imports, "LARGE", ("large_library", "no_such_library"))
    monkeypatch.setattr(gc, "freeze", lambda: None)  # it would keep the garbage of other tests
    imports.quicken_imports()
    yield file
    sys.modules.pop("large_library", None)


def test_no_garbage_is_collected_while_a_large_library_is_imported(library: Path) -> None:
    module = importlib.import_module("large_library")
    assert module.ENABLED is False
    assert gc.isenabled()
    assert module.__file__ == str(library)
    assert inspect.getsource(module) == library.read_text()


def test_one_that_cannot_be_imported(library: Path) -> None:
    library.write_text("raise OSError('libcudart.so is missing')\n")
    with pytest.raises(OSError, match=r"libcudart.so is missing"):
        importlib.import_module("large_library")
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        importlib.import_module("no_such_library")


def test_a_collector_that_is_switched_off_stays_so(library: Path) -> None:
    assert library.is_file()
    gc.disable()
    try:
        importlib.import_module("large_library")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_tool_prepares_it_once(library: Path) -> None:
    assert library.is_file()
    before = list(sys.meta_path)
    imports.quicken_imports()
    assert sys.meta_path == before


@pytest.mark.long
def test_torch_is_left_out_of_later_collections() -> None:
    program = """
import gc
from detkit.engine.speed import prepare_process
prepare_process()
import torch
assert gc.isenabled()
assert gc.get_freeze_count() > len(gc.get_objects()) > 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)

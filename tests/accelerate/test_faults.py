"""A numba that cannot be used costs time and one warning, and stops nothing."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = """
import torch
from detkit.ops.iou import box_iou
boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [5, 0, 15, 10]])
assert torch.allclose(box_iou(boxes[:1], boxes), torch.tensor([[1, 1 / 2, 1 / 3]]))
print("done")
"""


def work(*first: str, **environment: str) -> str:
    """Warnings of a process that uses the kernels, after the lines `first`."""
    code = "\n".join(first) + WORK
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "", "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "done\n"
    assert "Traceback" not in ran.stderr
    return ran.stderr


def test_a_numba_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba/__init__.py").write_text("raise ImportError('Numba needs NumPy 2.3 or less. Got NumPy 2.4.')")
    warned = work(PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert warned.count("Warning: detkit runs without its compiled kernels") == 1
    assert "Got NumPy 2.4" in warned
    (tmp_path / "numba/__init__.py").write_text("config = None")  # as of an installation that was interrupted
    assert work(PYTHONPATH=f"{tmp_path}:{ROOT}").count("Warning: detkit runs without its compiled kernels") == 1


def test_no_numba_and_a_numba_that_is_switched_off() -> None:
    assert work("import sys; sys.modules['numba'] = None; sys.modules['numba.core'] = None") == ""
    assert work(NUMBA_DISABLE_JIT="1") == ""


def test_kernels_that_do_not_compile() -> None:
    broken = (
        "from numba.core.compiler import CompilerBase",
        "from numba.core.errors import LoweringError",
        "def fail(self, *_): raise LoweringError('no such instruction')",
        "CompilerBase.compile_extra = fail",
    )
    warned = work(*broken, NUMBA_CACHE_DIR="/nonexistent")
    assert warned.count("Warning: detkit runs without its compiled kernels") == 1
    assert "no such instruction" in warned


def test_a_cache_that_was_cut_short(tmp_path: Path) -> None:
    assert work(NUMBA_CACHE_DIR=str(tmp_path)) == ""
    whole = {path: path.read_bytes() for path in tmp_path.rglob("*.nb?")}
    assert {path.suffix for path in whole} == {".nbi", ".nbc"}
    for suffix in (".nbi", ".nbc"):
        for path, content in whole.items():
            path.write_bytes(content[: len(content) // 2] if path.suffix == suffix else content)
        warned = work(NUMBA_CACHE_DIR=str(tmp_path))
        assert warned.count("Warning: ") == 1, warned
        assert str(tmp_path) in warned
        assert work(NUMBA_CACHE_DIR=str(tmp_path)) == "", "the files were made anew"


def test_a_full_disk_under_the_cache(tmp_path: Path) -> None:
    full = (
        "import errno, numba.core.caching as caching",
        "def fail(*_): raise OSError(errno.ENOSPC, 'No space left on device')",
        "caching.IndexDataCacheFile._save_data = fail",
        "caching.IndexDataCacheFile._save_index = fail",
    )
    warned = work(*full, NUMBA_CACHE_DIR=str(tmp_path))
    assert warned.count("Warning: ") == 1
    assert "No space left on device" in warned


def test_a_folder_in_which_nothing_can_be_written() -> None:
    """As where the package and the home belong to somebody else."""
    nowhere = (
        "from numba.core.caching import _CacheLocator",
        "def refuse(self): raise OSError('read-only file system')",
        "_CacheLocator.ensure_cache_path = refuse",
    )
    assert work(*nowhere) == ""

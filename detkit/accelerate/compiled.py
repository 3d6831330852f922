"""Functions that numba compiles the first time they run and keeps on disk, and their division among threads."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numba.core.caching import FunctionCache

PROCESS = os.getpid()  # of the process that imported this; processes forked from it have another

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class _Cache(FunctionCache):
    """numba's cache on disk, but a file that cannot be read or written is told once and costs no more than time."""

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)
        except Exception as error:  # a file that was cut short raises whatever pickle makes of it
            _warn_once(self.cache_path, error)
            with suppress(OSError):
                self.flush()  # so that the next process finds a whole file again
            return None

    def save_overload(self, *arguments: Any) -> None:
        try:
            super().save_overload(*arguments)
        except Exception as error:
            _warn_once(self.cache_path, error)


@cache
def _warned() -> list[str]:
    return []


def _warn_once(folder: str, error: Exception) -> None:
    if not _warned():
        _warned().append(folder)
        warnings.warn(
            f"{folder}: cannot use the compiled kernels kept here ({error or type(error).__name__}); they are compiled "
            "again, which takes a minute; make room there, or name another folder in NUMBA_CACHE_DIR",
            RuntimeWarning,
            stacklevel=2,
        )


def compiled(function: FunctionT, **options: Any) -> FunctionT:
    """Compiles `function`, which takes numpy arrays and numbers, and runs it without the interpreter lock.

    Floating-point operations are done as written: none is reordered or fused, and division by zero gives inf or nan.
    """
    compile_: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy", **options)
    kernel: Any = compile_(function)
    with suppress(RuntimeError):  # numba finds no folder in which it may write; it compiles again in every process
        kernel._cache = _Cache(function)
    return kernel  # type: ignore[no-any-return]


def threaded(function: FunctionT) -> FunctionT:
    """`compiled`, with the loops over `numba.prange` divided among threads."""
    return compiled(function, parallel=True)


def run(
    serial: Callable[..., None],
    parallel: Callable[..., None],
    arguments: Sequence[Any],
    total: int,
    *,
    min_part: int = 1,
) -> None:
    """Does the work `range(total)` in as many parts as torch has threads, and in one where there is only one.

    serial    kernel, called with the arguments, the start and the end of the work
    parallel  kernel, `threaded`, that does the same in parts: called with the arguments, the total and their number
    min_part  smallest part
    """
    parts = count_parts(total, min_part)
    if parts == 1:
        serial(*arguments, 0, total)
    else:
        numba.set_num_threads(min(parts, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        parallel(*arguments, total, parts)


def count_parts(total: int, min_part: int = 1) -> int:
    """The number of parts of `run`."""
    parts = max(1, min(torch.get_num_threads(), total // min_part))
    # In a forked process GNU OpenMP hangs, and numba ends the process before it does.
    return parts if parts > 1 and os.getpid() == PROCESS and _threads_work() else 1


@cache
def _threads_work() -> bool:
    """Whether numba runs loops on OpenMP, which are the threads of torch where both use the same library.

    Threads of its own would have to share the cores with torch's, which for a while spin when they are idle; and its
    `workqueue` ends the process if two threads of Python call kernels at once.
    """
    if numba.config.THREADING_LAYER == "default":  # type: ignore[attr-defined]
        numba.config.THREADING_LAYER = "omp"  # type: ignore[attr-defined]
    try:
        _write_parts(np.empty(2))
    except ValueError:  # numba has no OpenMP here
        return False
    return bool(numba.threading_layer() == "omp")  # type: ignore[attr-defined]


@threaded
def _write_parts(into: np.ndarray) -> None:
    for part in numba.prange(len(into)):
        into[part] = part

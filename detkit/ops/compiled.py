"""Kernels for the CPU: Python functions that numba compiles the first time they run and keeps on disk.

An op with such a kernel imports it from a file of its own, `*_cpu.py`, if `usable` says that it may be called. If not,
or if numba is not installed, the op does the same with torch and torchvision.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

PROCESS = os.getpid()  # of the process that imported this; processes forked from it have another

KernelT = TypeVar("KernelT", bound=Callable[..., Any])

_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def usable(*tensors: Tensor) -> bool:
    """Whether kernels can read the memory of these tensors: ordinary ones on the CPU, and numba is installed.

    False while a program is traced or compiled, as that must consist of torch's own operations.
    """
    return (
        all(type(tensor) is Tensor and tensor.device.type == "cpu" for tensor in tensors)
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.compiler.is_compiling()
        and _numba_works()
    )


def kernel(function: KernelT) -> KernelT:
    """Compiles `function`, which takes numpy arrays and numbers, and runs it without the interpreter lock.

    Floating-point operations are done as written: none is reordered or fused, and division by zero gives inf or nan.
    """
    import numba

    compile_: Callable[..., Any] = partial(numba.njit, nogil=True, error_model="numpy")
    try:
        compiled: KernelT = compile_(function, cache=True)
    except RuntimeError:  # numba finds no folder in which it may write its cache
        compiled = compile_(function)
    return compiled


def in_threads(work: Callable[[int, int], Any], total: int, *, min_part: int = 1) -> None:
    """Splits `range(total)` into parts and calls `work(start, end)` for all of them in parallel.

    There are as many threads as torch has. `work` must spend its time in a kernel, which releases the interpreter
    lock, and must not write to the same memory in two parts. The first exception of `work` is raised here.

    min_part  smallest part; a smaller total is done without threads
    """
    parts = max(1, min(torch.get_num_threads(), total // min_part))
    if parts == 1:
        work(0, total)
        return
    bounds = [part * total // parts for part in range(parts + 1)]
    remaining = iter(list(pairwise(bounds)))  # every thread takes its next part from here
    failures: list[BaseException] = []

    def run(_: object = None) -> None:
        for start, end in remaining:
            try:
                work(start, end)
            except BaseException as error:
                failures.append(error)

    openmp = _gnu_openmp(os.getpid())
    if openmp is None:
        # A pool for every call: one that outlives it would have no threads in a forked process.
        with ThreadPoolExecutor(parts - 1) as pool:
            for _ in range(parts - 1):
                pool.submit(run)
            run()
    else:
        openmp.GOMP_parallel(_REGION(run), None, torch.get_num_threads(), 0)
    if failures:
        raise failures[0]


@cache
def _gnu_openmp(process: int) -> ctypes.CDLL | None:
    """GNU OpenMP, if torch runs its own operations on the threads of that library; else None.

    Kernels run on the same threads as torch because idle OpenMP threads do not sleep at once but spin for a while,
    waiting for more work: other threads would have to share the cores with them. In a forked process, which is not
    `PROCESS`, GNU OpenMP hangs, so there it is None.
    """
    if process != PROCESS:
        return None
    try:
        return ctypes.CDLL("libgomp.so.1", os.RTLD_NOLOAD)
    except (AttributeError, OSError):  # AttributeError: Windows has no RTLD_NOLOAD
        return None


@cache
def _numba_works() -> bool:
    if find_spec("numba") is None:
        return False
    import numba

    return not numba.config.DISABLE_JIT  # type: ignore[attr-defined]

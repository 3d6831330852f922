"""Kernels for the CPU, written in Python and compiled by numba the first time they run; kept on disk after that.

An op with such a kernel has it in a file of its own, named `*_cpu.py`, imported when it is first needed, and asks
`usable` whether it may be called. Otherwise, and where numba is missing, the op does the same in torch and torchvision.
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

PROCESS = os.getpid()  # that imported this, and no process that it forks

KernelT = TypeVar("KernelT", bound=Callable[..., Any])

_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def usable(*tensors: Tensor) -> bool:
    """Whether a kernel can read the memory of these: on the CPU, of ordinary tensors, in a process with numba.

    A program that is being traced or compiled is made of torch's own operations, so there it is False.
    """
    return (
        all(type(tensor) is Tensor and tensor.device.type == "cpu" for tensor in tensors)
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.compiler.is_compiling()
        and _numba_works()
    )


def kernel(function: KernelT) -> KernelT:
    """Compiles `function` of numpy arrays and numbers, which then leaves the interpreter lock to others.

    Floating point is as written: nothing is reordered or contracted, division by zero gives inf or nan.
    """
    import numba

    compile_: Callable[..., Any] = partial(numba.njit, nogil=True, error_model="numpy")
    try:
        compiled: KernelT = compile_(function, cache=True)
    except RuntimeError:  # there is no folder that it may write to
        compiled = compile_(function)
    return compiled


def in_threads(work: Callable[[int, int], Any], total: int, *, least: int = 1) -> None:
    """Calls `work(start, end)` on parts of `range(total)`, `least` or more each, at once on torch's number of threads.

    `work` must be a kernel's, which leaves the interpreter lock, and its parts must not write to the same memory.
    """
    parts = max(1, min(torch.get_num_threads(), total // least))
    if parts == 1:
        work(0, total)
        return
    bounds = [part * total // parts for part in range(parts + 1)]
    todo = iter(list(pairwise(bounds)))  # a thread takes the next one that no other has
    failures: list[BaseException] = []

    def run(_: object = None) -> None:
        for start, end in todo:
            try:
                work(start, end)
            except BaseException as error:
                failures.append(error)

    openmp = _gnu_openmp(os.getpid())
    if openmp is None:
        with ThreadPoolExecutor(parts - 1) as pool:  # made anew: a forked process would inherit one without threads
            for _ in range(parts - 1):
                pool.submit(run)
            run()
    else:
        openmp.GOMP_parallel(_REGION(run), None, torch.get_num_threads(), 0)
    if failures:
        raise failures[0]


@cache
def _gnu_openmp(process: int) -> ctypes.CDLL | None:
    """The library whose threads torch works with. None where it is another, and in a forked process, where it hangs.

    Its threads wait for more work without sleep, a while: others beside them would have half of the cores.
    """
    if process != PROCESS:
        return None
    try:
        return ctypes.CDLL("libgomp.so.1", os.RTLD_NOLOAD)
    except (AttributeError, OSError):  # AttributeError: there is no such mode on Windows
        return None


@cache
def _numba_works() -> bool:
    if find_spec("numba") is None:
        return False
    import numba

    return not numba.config.DISABLE_JIT  # type: ignore[attr-defined]

"""The one way from an op to its compiled kernel in `detkit/accelerate`; without that folder every op runs in torch.

A kernel reads the memory of tensors directly, so it takes only what it can compute: ordinary tensors on the CPU, with
no transform, mode or trace of torch around the call. An op does everything else with torch and torchvision, and gives
the same.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

_compiles = True  # until a kernel fails to


def attempt(name: str, *arguments: Any) -> Any:
    """What the kernel `name` of `detkit.accelerate.kernels` returns, or None if it cannot take these arguments.

    Kernels that fail to compile are switched off with a warning.
    """
    if not are_plain(*(value for value in arguments if isinstance(value, Tensor))):
        return None
    global _compiles
    module = kernels() if _compiles else None
    if module is None:
        return None
    try:
        return getattr(module, name)(*arguments)
    except module.CompilationError as error:
        _compiles = False
        _warn(f"numba cannot compile them here ({error})")
        return None


def are_plain(*tensors: Tensor) -> bool:
    """Whether these are ordinary dense tensors in the memory of the CPU, whose values an op may read and write itself.

    False in forward-mode differentiation, and where torch traces.
    """
    return (
        all(
            type(tensor) in (Tensor, torch.nn.Parameter)
            and tensor.device.type == "cpu"
            and tensor.layout == torch.strided
            and not (tensor.is_neg() or tensor.is_conj() or tensor.is_quantized)
            and forward_ad.unpack_dual(tensor).tangent is None  # type: ignore[no-untyped-call]
            for tensor in tensors
        )
        and not is_traced()
    )


def is_traced() -> bool:
    """Whether torch must see every single operation, and tensors may have no memory that can be read.

    True within a transform of torch.func (vmap, grad, jvp, ...), a dispatch mode (as of fake tensors or make_fx),
    tracing and compilation.
    """
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or _get_current_dispatch_mode() is not None
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.compiler.is_compiling()
    )


@cache
def kernels() -> ModuleType | None:
    """`detkit.accelerate.kernels`, or None where numba or that folder is missing, or numba is switched off.

    numba that is installed but cannot be imported is told once in a warning.
    """
    if find_spec("detkit.accelerate") is None or find_spec("numba") is None:
        return None
    try:
        import numba

        from detkit.accelerate import kernels as module
    except Exception as error:  # ImportError if it was built for another NumPy, and whatever a broken package raises
        _warn(f"numba cannot be imported ({error})")
        return None
    return None if numba.config.DISABLE_JIT else module  # type: ignore[attr-defined]


def _warn(reason: str) -> None:
    warnings.warn(
        f"detkit runs without its compiled kernels, with the same results but slower: {reason}; mend or remove numba",
        RuntimeWarning,
        stacklevel=2,
    )

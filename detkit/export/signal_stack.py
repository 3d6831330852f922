"""A stack for signal handlers that lives as long as its thread."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading

SIZE = 1 << 17  # bytes: room for all registers of a processor, which Linux puts there, and for the handler itself

_thread = threading.local()


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def own_signal_stack() -> None:
    """Gives the calling thread a signal stack of its own, if it has one.

    When OpenVINO compiles a model it gives the thread a stack, and when the model goes it frees the memory, but the
    thread still has it: the next signal that Python handles, such as a worker's end, kills the process without a word.
    """
    if sys.platform != "linux":
        return
    libc, current = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(current))
    if current.start is None:
        return
    if not hasattr(_thread, "stack"):
        _thread.stack = mmap.mmap(-1, SIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(_thread.stack))
    libc.sigaltstack(ctypes.byref(_SignalStack(start, 0, SIZE)), None)

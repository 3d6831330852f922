"""Pickles that hold numpy arrays, text, numbers and containers, read as data.

A pickle is a program for a small stack machine, which can import and call anything. This reader is such a machine with
nothing to call: it knows the instructions that build values, and the few names with which arrays, bytes and OrderedDict
describe themselves. All others are refused. The standard library's `pickletools` splits the file into instructions.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.config import UserError

NUMPY = ("numpy.core", "numpy._core")  # numpy 1 and 2
KNOWN = {
    **{(f"{numpy}.multiarray", name): name for numpy in NUMPY for name in ("_reconstruct", "scalar")},
    **{(f"{numpy}.numeric", "_frombuffer"): "_frombuffer" for numpy in NUMPY},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",  # how bytes were written before pickles had them
    **{(builtins, "bytes"): "bytes" for builtins in ("__builtin__", "builtins")},  # of none, likewise
    ("collections", "OrderedDict"): "OrderedDict",
}
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
PUSHED = (
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(Exception):
    """Says what else than data there is."""


@dataclass(eq=False)
class _Name:
    """One of `KNOWN`."""

    name: str


@dataclass(eq=False)
class _DType:
    """numpy's description of a type: a code such as f4, and afterwards the order of its bytes."""

    code: str
    order: str = "<"

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


def read_pickle(file: Path) -> object:
    """What a pickle holds: dicts, lists, tuples, text, bytes, numbers and numpy arrays. No code of the file is run.

    Text of Python 2 comes as Latin-1. Raises UserError if it holds anything else, or is no pickle or cut short.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot read this file: {error.strerror or error}") from error
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except _Refused as refusal:
        raise UserError(
            f"{file}: holds {refusal}, which is not data; expected a pickle of arrays, text and numbers alone, and ran "
            "nothing of it"
        ) from refusal
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise UserError(f"{file}: not a pickle of arrays, or one that is cut short") from error
    return result


class _Machine:
    """The stack of values, where on it containers begin, and the values that the program comes back to by number."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in PUSHED:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in TUPLES:
            self._join(len(self.stack) - TUPLES[name])
        elif name not in ("PROTO", "FRAME", "STOP"):
            action = getattr(self, f"_do_{name.lower()}", None)
            if action is None:
                raise _Refused(f"the instruction {name}")
            action(argument)

    def _join(self, start: int) -> None:
        if start < 0:
            raise IndexError("fewer values than the tuple has")
        self.stack[start:] = [tuple(self.stack[start:])]

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _do_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _do_list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _do_dict(self, _: Any) -> None:
        values = self._since_mark()
        self.stack.append({})
        self._set_items(values)

    def _do_append(self, _: Any) -> None:
        value = self.stack.pop()
        self._top(list).append(value)

    def _do_appends(self, _: Any) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _do_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, values: list[Any]) -> None:
        content = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int):
                raise _Refused(f"a dict with {_kind(key)} as a key")
            content[key] = value

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"expected a {kind.__name__}")
        return self.stack[-1]

    def _do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _do_binput(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def _do_binget(self, number: int) -> None:
        self.stack.append(self.memo[number])

    _do_put = _do_long_binput = _do_binput
    _do_get = _do_long_binget = _do_binget

    def _do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def _do_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        known = KNOWN.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if known is None:
            raise _Refused(repr(f"{module}.{name}")[:80])
        self.stack.append(_Name(known))

    def _do_reduce(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise _Refused(f"a call of {_kind(called)}")
        self.stack.append(_described(called.name, arguments))

    def _do_build(self, _: Any) -> None:
        state, described = self.stack.pop(), self.stack[-1]
        match described, state:
            case _DType(), (_, str() as order, *_):
                described.order = _order(order)
            case np.ndarray(), (_, shape, _DType() as dtype, by_column, raw):
                content = _bytes(raw)
                _check_shape(shape, dtype, content)
                described.__setstate__((1, shape, dtype.numpy(), bool(by_column), content))  # type: ignore[arg-type]
            case dict(), dict():  # attributes of an OrderedDict, such as the versions of torch's state dicts
                pass
            case _:
                raise _Refused(f"a state of {_kind(described)}")


def _described(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a call of one of `KNOWN` with these arguments would give."""
    match name, arguments:
        case "_reconstruct", (_Name(name="ndarray"), (0,), _):
            return np.empty(0, np.uint8)  # its state, which follows, is its shape, type and content
        case "dtype", (str() as code, *_) if code.lstrip("<>=|") in DTYPES:
            return _DType(code.lstrip("<>=|"), _order(code[0]) if code[0] in "<>=|" else "<")
        case "_frombuffer", (raw, _DType() as dtype, shape, str() as order):
            return _filled(_bytes(raw), dtype, shape, order)
        case "scalar", (_DType() as dtype, raw):
            return _filled(_bytes(raw), dtype, (), "C").item()
        case "encode", (str() as text, "latin1" | "latin-1"):
            return text.encode("latin-1")
        case "bytes", ():
            return b""
        case "OrderedDict", ():
            return {}
    raise _Refused(f"{name!r} with other arguments than those of an array")


def _order(order: str) -> str:
    if order not in ("<", ">", "=", "|"):
        raise ValueError(f"no order of bytes: {order!r}")
    return "<" if order in "=|" else order


def _bytes(raw: Any) -> bytes:
    """Python 2 wrote them as text."""
    if not isinstance(raw, str | bytes | bytearray):
        raise TypeError("expected bytes")
    return raw.encode("latin-1") if isinstance(raw, str) else bytes(raw)


def _filled(raw: bytes, dtype: _DType, shape: Any, order: str) -> np.ndarray:
    _check_shape(shape, dtype, raw)
    if order not in ("C", "F"):
        raise ValueError("no order of cells")
    return np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


def _check_shape(shape: Any, dtype: _DType, raw: bytes) -> None:
    """Raises ValueError unless an array of this shape has just these bytes."""
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("no shape")
    if math.prod(shape) * dtype.numpy().itemsize != len(raw):
        raise ValueError("another number of bytes than the shape has")


def _kind(value: Any) -> str:
    return repr(value.name) if isinstance(value, _Name) else type(value).__name__.strip("_")

"""Pickles of arrays are read as data: what pickle writes comes back, and nothing in a file is ever run."""

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.config import UserError
from detkit.pickles import read_pickle

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def written(content: object, folder: Path, protocol: int | None = None) -> Path:
    path = folder / "model.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_a_checkpoint_holds_comes_back(protocol: int, tmp_path: Path) -> None:
    arrays = {
        "c": ARRAY,
        "fortran": np.asfortranarray(ARRAY),
        "big-endian": ARRAY.astype(">f4"),
        "half": ARRAY.astype(np.float16),
        "whole": np.array([2**40, -1]),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "none": np.array(3.5),
    }
    content = {
        "model": OrderedDict(arrays),
        "again": arrays["c"],
        "__author__": "Zoë",
        "iteration": np.int64(7),
        "numbers": [1, -2.5, True, None, (), (1,), (1, 2, 3, 4), 2**70, b"\xff\x00"],
    }
    found: Any = read_pickle(written(content, tmp_path, protocol))
    assert found["numbers"] == content["numbers"]
    assert (found["__author__"], found["iteration"]) == ("Zoë", 7)
    assert list(found["model"]) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found["model"][name], array)
        assert found["model"][name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found["again"], ARRAY)


def test_names_of_numpy_1_and_bytes_of_python_2(tmp_path: Path) -> None:
    """As the model zoo has them: written before numpy moved its core, partly by Python 2, whose bytes were text."""
    state = b"(I1\n(I2\nI3\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
    raw = b"U" + bytes([ARRAY.nbytes]) + ARRAY.tobytes()
    head = b"(dS'model'\n(dS'w'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    content: Any = read_pickle(written(head + state + raw + b"tbss.", tmp_path))
    np.testing.assert_array_equal(content["model"]["w"], ARRAY)


class Hostile:
    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def command(folder: Path) -> str:
    return f"touch {folder / 'ran'}"


def stack_global(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


HOSTILE = {
    "system": lambda folder: {"model": Hostile(os.system, (command(folder),))},
    "eval": lambda folder: {"model": {"w": Hostile(eval, (f"open({str(folder / 'ran')!r}, 'w')",))}},
    "in an array": lambda folder: np.array([Hostile(os.system, (command(folder),))], dtype=object),
    "in a key": lambda folder: {Hostile(os.system, (command(folder),)): 1},
    "a class": lambda folder: {"model": Path(folder)},
    "numpy": lambda folder: {"model": Hostile(np.fromfile, (str(folder / "model.pkl"),))},
    "getattr": lambda folder: Hostile(getattr, ("text", "upper")),
    "of an allowed name": lambda folder: Hostile(np.ndarray, ((2**40,),)),
    "an object of Python 1": lambda folder: b"(S'" + command(folder).encode() + b"'\nios\nsystem\n.",
    "OBJ": lambda folder: b"(cos\nsystem\nS'" + command(folder).encode() + b"'\no.",
    "a new object": lambda folder: b"\x80\x02cnumpy\nndarray\n)\x81.",
    "attributes": lambda folder: b"\x80\x04" + stack_global("numpy", "dtype") + b"}\x8c\x01n\x8c\x01xsb.",
    "a dotted name": lambda folder: b"\x80\x04" + stack_global("numpy", "ndarray.__reduce__") + b".",
    "a persistent id": lambda folder: b"Pos.system\n.",
    "an extension": lambda folder: b"\x82\x01.",
    "a call of text": lambda folder: b"S'os.system'\n(S'x'\ntR.",
    "dtype of objects": lambda folder: b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
    "text for encode": lambda folder: b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.",
    "a tuple as a key": lambda folder: b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_of_a_hostile_file_is_run(name: str, tmp_path: Path) -> None:
    path = written(HOSTILE[name](tmp_path), tmp_path)
    with pytest.raises(UserError, match=f"^{path}: holds [^\n]+, which is not data; [^\n]+ ran nothing of it$"):
        read_pickle(path)
    assert os.listdir(tmp_path) == ["model.pkl"]


def test_hostile_files_are_hostile(tmp_path: Path) -> None:
    """Python itself runs what the reader above refuses."""
    path = written(HOSTILE["system"](tmp_path), tmp_path)
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()


HEAD = b"\x80\x04" + stack_global("numpy._core.numeric", "_frombuffer")
FLOAT = stack_global("numpy", "dtype") + b"(\x8c\x02f4tR"
BROKEN = {
    "nothing": b"",
    "text": b"<html>not found</html>",
    "cut short": pickle.dumps({"model": {"w": ARRAY}})[:-20],
    "a size beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"xx.",
    "an empty array of that size": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
    "a far place in the memo": b"}r\xff\xff\xff\xff0.",
    "more in the shape than bytes": HEAD + b"(C\x04abcd" + FLOAT + b"J\xff\xff\xff\x7f\x85\x8c\x01CtR.",
    "a negative side": HEAD + b"(C\x00" + FLOAT + b"J\xff\xff\xff\xff\x85\x8c\x01CtR.",
    "a side of text": HEAD + b"(C\x00" + FLOAT + b"\x8c\x01x\x85\x8c\x01CtR.",
    "an order of its own": HEAD + b"(C\x04abcd" + FLOAT + b"K\x01\x85\x8c\x01XtR.",
    "nothing on the stack": b"\x80\x04\x94.",
    "no mark": b"\x80\x04t.",
    "a value that was never stored": b"\x80\x04h\x05.",
    "a tuple of too much": b"\x80\x04N\x87.",
    "an item of a list": b"\x80\x04]NNs.",
    "two values": b"\x80\x04NN.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = written(BROKEN[name], tmp_path)
    with pytest.raises(UserError, match=f"^{path}: [^\n]+$"):
        read_pickle(path)


def test_a_list_that_holds_itself_ends(tmp_path: Path) -> None:
    looped: list[Any] = []
    looped.append(looped)
    doubled: Any = "x"
    for number in range(100):  # 2^100 values, were they walked through
        doubled = {"a": doubled, "b": doubled} if number % 2 else [doubled, doubled]
    twins: Any = {}
    for _ in range(100):
        twins = {"a": twins, "b": twins}
    content = {"model": {"w": ARRAY, "looped": looped, "doubled": doubled, "twins": twins}}
    found: Any = read_pickle(written(content, tmp_path))
    np.testing.assert_array_equal(found["model"]["w"], ARRAY)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}/none.pkl: cannot read this file: No such file"):
        read_pickle(tmp_path / "none.pkl")

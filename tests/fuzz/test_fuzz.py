"""Thousands of damaged files: every reader ends with a result or with a message, in bounded time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from detkit.config import UserError
from tests.fuzz.harness import Target, message_fault, run
from tests.fuzz.mutations import mutate
from tests.fuzz.targets import BUILDERS, QUICK
from tests.fuzz.trees import change_tree


@pytest.fixture(autouse=True)
def quiet(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What decoders complain about is not shown, and no cache outlives a test."""
    yield
    capfd.readouterr()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUILDERS)
def test_readers_end_well(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path.joinpath(*["work", "in", "a", "deep", "folder"])
    folder.mkdir(parents=True)
    target = BUILDERS[name](folder)
    for seed in target.seeds:  # valid files are read, so that changed ones come far
        (folder / f"input{target.suffix}").write_bytes(seed)
        target.read(folder / f"input{target.suffix}")
    tally = run(target, folder, tmp_path / "faults", seed=0, inputs=QUICK[name])
    assert not tally.faults, "\n\n".join(tally.faults.values())
    assert len(tally.ends) > 1 or name == "server"  # which answers, and raises nothing


# ---- the harness itself


def read_nothing(path: Path) -> None:
    """Each first byte is another end."""
    match path.read_bytes()[:1]:
        case b"a":
            raise UserError("file: expected b, found a; write b")
        case b"b":
            raise KeyError("b")
        case b"c":
            raise MyError
        case b"d":
            while True:
                pass


class MyError(UserError):
    def __str__(self) -> str:
        return "two\nlines"


def test_ends_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.harness.HANG", 0.2)
    target = Target("nothing", [b"a", b"b", b"c", b"d", b"e"], read_nothing, ".txt")
    monkeypatch.setattr("tests.fuzz.harness.mutate", lambda rng, seeds, words: rng.choice(seeds))
    tally = run(target, tmp_path, tmp_path / "faults", seed=0, inputs=30)
    assert tally.inputs == sum(tally.ends.values()) == 30
    assert set(tally.ends) == {"UserError", "KeyError", "MyError", "Hang", "result"}
    assert {kind.partition(":")[0] for kind in tally.faults} == {"KeyError", "Hang", "the message has further lines"}
    assert sorted(file.read_bytes() for file in (tmp_path / "faults").iterdir()) == [b"b", b"c", b"d"]


def test_an_input_is_a_function_of_its_number() -> None:
    target = Target("numbers", [b"width=3 height=4\n" * 5], lambda path: None, ".txt", words=(b"width",))
    first = [target.input(7, number) for number in range(50)]
    assert [target.input(7, number) for number in reversed(range(50))] == first[::-1]
    assert [target.input(8, number) for number in range(50)] != first
    assert len(set(first)) > 40


def test_changes_reach_every_place() -> None:
    """Of 16 bytes, each is changed by some of the mutations; nothing grows without limit."""
    seed = bytes(range(16))
    changed = [mutate(Random(number), [seed], ()) for number in range(2000)]
    assert all(any(data[:16][at : at + 1] != seed[at : at + 1] for data in changed) for at in range(16))
    assert max(map(len, changed)) <= 16 + (1 << 17)


def test_trees_stay_trees() -> None:
    tree = {"a": [1, {"b": 2}], "c": "x"}
    changed = [change_tree(Random(number), tree) for number in range(500)]
    assert tree == {"a": [1, {"b": 2}], "c": "x"}
    assert any(isinstance(each, dict) and "c" not in each for each in changed)
    assert any(isinstance(each, dict) and each.get("c") == "x" and each.get("a") != tree["a"] for each in changed)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("file: one line", None),
        ("file: 2 errors\n  first\n  second", None),
        ("", "empty"),
        ("one\ntwo", "further lines"),
        ("a \x1b[31mred\x1b[0m word", "control characters"),
        ("x" * 5000, "very long line"),
    ],
)
def test_form_of_a_message(message: str, fault: str | None) -> None:
    found = message_fault(message)
    assert (found is None) == (fault is None)
    assert fault is None or fault in str(found)
    assert message_fault(str(UserError(message or "x"))) is None  # which brings any text into this form

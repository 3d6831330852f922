"""Messages quote what stands in files, and stay one line, or one and a list, that any terminal shows."""

from __future__ import annotations

import pytest

from detkit.config import LONGEST_LINE, UserError
from detkit.data.checks import DataError
from detkit.serve.refusal import Refusal


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("a.xml: expected 0 or 1", "a.xml: expected 0 or 1"),
        ("a.yaml: 2 errors\n  first\n  second", "a.yaml: 2 errors\n  first\n  second"),
        ("the class dog\ncat is not known", "the class dog\\ncat is not known"),
        ("grüner Apfel, 狗, 🐶", "grüner Apfel, 狗, 🐶"),
        ("\x1b[2J\r\0\t\x85\u2028", r"\x1b[2J\r\x00\t\x85\u2028"),
        ("half \ud83d of a dog", r"half \ud83d of a dog"),
        ("", ""),
    ],
)
def test_what_ends_a_line_or_moves_a_terminal_is_an_escape(message: str, expected: str) -> None:
    for error in (UserError(message), DataError(message), Refusal(422, message)):
        assert str(error) == expected
        str(error).encode()


def test_long_lines_lose_their_middle() -> None:
    message = f"a.json: expected a name, found {'x' * 10_000}; rename it"
    line = str(UserError(message))
    assert len(line) <= LONGEST_LINE
    assert line.startswith("a.json: expected a name, found xxx")
    assert line.endswith("xxx; rename it")
    assert " ... " in line
    exact = "y" * LONGEST_LINE
    assert str(UserError(f"{exact}\n  {exact[2:]}")) == f"{exact}\n  {exact[2:]}"

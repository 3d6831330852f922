"""Changes to the bytes of valid files, drawn from a generator: the same seed gives the same file."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from random import Random

MAX_BYTES = 1 << 17  # of a changed file, beyond what its seed has
TOKEN = re.compile(rb"[\w.+-]+")
NUMBERS = (
    *(b"0", b"-0", b"1", b"-1", b"2", b"0.5", b"-0.5", b"255", b"256", b"65536", b"2147483647", b"2147483648"),
    *(b"-2147483649", b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"1e3", b"1e308"),
    *(b"1e309", b"-1e309", b"1e-400", b"1e999999999", b"nan", b"NaN", b"-nan", b"inf", b"Infinity", b"-Infinity"),
    *(b"0x10", b"1_000", b"007", b"1.", b".5", b"+3", b"1,5", b"9" * 400, b"9" * 5000, b"\xd9\xa3", b"\xc2\xb2"),
)
VALUES = (
    *(b"null", b"true", b"false", b"''", b'""', b"[]", b"{}", b"[[]]", b"[null]", b'"\\ud800"', b'"a\\nb"', b"~"),
    *(b"name", b"id", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\n", b" ", b"\t", b"\xe2\x80\xa8"),
    *(b"C:\\a\\b", b"\xed\xa0\x80", b"\xf0\x9f\x90\xb6", b"a" * 3000),
)
INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x3FFFFFFF, 1 << 20, 1 << 28)
Change = Callable[[Random, bytearray, Sequence[bytes], Sequence[bytes]], None]


def mutate(rng: Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of `seeds` with 1 to 8 changes; `words` are tokens of the format."""
    data = bytearray(rng.choice(seeds))
    limit = len(data) + MAX_BYTES
    changes = TEXT if words and rng.random() < 0.7 else BYTES
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        rng.choice(changes)(rng, data, seeds, words)
    return bytes(data[:limit])


def _span(rng: Random, data: bytearray) -> tuple[int, int]:
    """Start and end of a piece, short ones more often."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + int(rng.choice((1, 2, 4, 8, 64, 1024)) * rng.random()) + 1)


def _flip(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _insert(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))


def _delete(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    start, end = _span(rng, data)
    del data[start:end]


def _repeat(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    start, end = _span(rng, data)
    data[start:end] = data[start:end] * rng.choice((2, 2, 2, 3, 10, 100, 3000 if end - start < 20 else 20))


def _truncate(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _move(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    start, end = _span(rng, data)
    piece = data[start:end]
    del data[start:end]
    at = rng.randrange(len(data) + 1)
    data[at:at] = piece


def _splice(rng: Random, data: bytearray, seeds: Sequence[bytes], _: Sequence[bytes]) -> None:
    other = rng.choice(seeds)
    start, end = _span(rng, data)
    at = rng.randrange(len(other) + 1)
    data[start:end] = other[at : at + rng.choice((1, 8, 64, 1024))]


def _integer(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    """A number of the header of a binary file."""
    at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 64) + 1)
    form = rng.choice(("<I", ">I", "<H", ">H", "<Q"))
    data[at : at + struct.calcsize(form)] = struct.pack(form, rng.choice(INTEGERS) & (0xFFFF if "H" in form else -1))


def _tokens(data: bytearray) -> list[tuple[int, int]]:
    return [match.span() for match in TOKEN.finditer(data)]


def _replace_token(rng: Random, data: bytearray, _: Sequence[bytes], words: Sequence[bytes]) -> None:
    spans = _tokens(data)
    if spans:
        start, end = rng.choice(spans)
        data[start:end] = rng.choice(rng.choice((NUMBERS, VALUES, words)) or NUMBERS)


def _insert_token(rng: Random, data: bytearray, _: Sequence[bytes], words: Sequence[bytes]) -> None:
    spans = _tokens(data)
    at = rng.choice(spans)[0] if spans else 0
    data[at:at] = rng.choice(rng.choice((NUMBERS, VALUES, words)) or NUMBERS)


def _swap_tokens(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    spans = _tokens(data)
    if len(spans) > 1:
        (a, b), (c, d) = sorted(rng.sample(spans, 2))
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def _delete_line(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    lines = data.splitlines(keepends=True)
    if lines:
        del lines[rng.randrange(len(lines))]
    data[:] = b"".join(lines)


def _repeat_line(rng: Random, data: bytearray, *_: Sequence[bytes]) -> None:
    lines = data.splitlines(keepends=True)
    if lines:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    data[:] = b"".join(lines)


def _nest(rng: Random, data: bytearray, _: Sequence[bytes], words: Sequence[bytes]) -> None:
    """Brackets in brackets, closed or not."""
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"{", b"}"), (b"<a>", b"</a>"), (b"(", b")")))
    at, depth = rng.randrange(len(data) + 1), rng.choice((2, 10, 200, 2000))
    data[at:at] = opening * depth + rng.choice(words or NUMBERS) + closing * rng.choice((0, depth))


BYTES: tuple[Change, ...] = (_flip, _flip, _set, _insert, _delete, _repeat, _truncate, _move, _splice, _integer)
TEXT: tuple[Change, ...] = (
    *(_replace_token, _replace_token, _replace_token, _insert_token, _swap_tokens, _delete_line, _repeat_line),
    *(_nest, _splice, _delete, _set),
)

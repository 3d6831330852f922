"""Darknet's `.cfg` files: `[section]`, then `key=value` lines; `#` and `;` begin a comment.

The first section, `[net]`, describes the input and the training; each other is a layer, counted from 0.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from detkit.config import UserError

ALIASES = {
    "network": "net",
    "conv": "convolutional",
    "conn": "connected",
    "max": "maxpool",
    "avg": "avgpool",
    "soft": "softmax",
}
# keys that this reader uses; other keys of darknet, such as those for training, are skipped
KEYS: dict[str, tuple[str, ...]] = {
    "net": ("width", "height", "channels", "letter_box"),
    "convolutional": ("batch_normalize", "filters", "size", "stride", "pad", "padding", "groups", "activation"),
    "local": ("filters", "size", "stride", "pad", "activation"),
    "connected": ("batch_normalize", "output", "activation"),
    "maxpool": ("size", "stride", "padding"),
    "avgpool": (),
    "upsample": ("stride",),
    "reorg": ("stride",),
    "route": ("layers", "groups", "group_id"),
    "shortcut": ("from", "activation"),
    "dropout": (),
    "softmax": (),
    "cost": (),
    "detection": ("classes", "coords", "num", "side", "sqrt", "softmax"),
    "region": ("anchors", "classes", "coords", "num", "softmax"),
    "yolo": ("anchors", "classes", "mask", "new_coords", "num", "scale_x_y"),
}
# keys that change what a layer computes and are not supported, with the value that changes nothing
NEUTRAL: dict[str, dict[str, str]] = {
    "convolutional": dict.fromkeys(
        ("binary", "xnor", "flipped", "antialiasing", "share_index", "stride_x", "stride_y", "rotate", "stretch",
         "sway", "stretch_sway", "deform", "assisted_excitation", "coordconv", "dontload", "dontloadscales"), "0",
    ) | {"dilation": "1"},
    "connected": {"dontload": "0"},
    "local": {"dontload": "0"},
    "maxpool": dict.fromkeys(("antialiasing", "maxpool_depth", "stride_x", "stride_y"), "0"),
    "upsample": {"scale": "1"},
    "reorg": dict.fromkeys(("reverse", "flatten", "extra"), "0"),
    "shortcut": {"weights_type": "none"},
    "softmax": {"groups": "1", "temperature": "1", "spatial": "0", "tree": ""},
    "region": {"background": "0", "tree": "", "map": ""},
    "yolo": {"map": ""},
}  # fmt: skip
MAX_NUMBER = 2**31 - 1  # of an int of darknet
NumberT = TypeVar("NumberT", int, float)


@dataclass(frozen=True)
class Section:
    """One section. Its methods raise UserError for a value that is missing or of another type.

    index    number of the layer, -1 for [net]
    options  value and line of each key; of a key that occurs twice the first counts, as in darknet
    """

    path: Path
    line: int
    kind: str
    index: int
    options: dict[str, tuple[str, int]] = field(default_factory=dict)

    def error(self, problem: str, key: str | None = None) -> UserError:
        """An error that names the file, the line and the layer of this section, or of its value of `key`."""
        _, line = self.options.get(key or "", ("", self.line))
        layer = f" of layer {self.index}" if self.index >= 0 else ""
        return UserError(f"{self.path}:{line}: [{self.kind}]{layer}: {f'{key}: ' if key else ''}{problem}")

    def text(self, key: str) -> str:
        if key not in self.options:
            raise self.error("missing; expected a value, as darknet's default is of no use", key)
        return self.options[key][0]

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        if key not in self.options and default is not None:
            return default
        value = self._parse(key, self.text(key), int, "a whole number")
        if value < least:
            raise self.error(f"expected at least {least}, found {value}", key)
        return value

    def flag(self, key: str) -> bool:
        return self.integer(key, 0, least=0) != 0

    def number(self, key: str, default: float) -> float:
        return self._parse(key, self.text(key), float, "a number") if key in self.options else default

    def integers(self, key: str) -> list[int]:
        return [self._parse(key, part, int, "whole numbers") for part in self._parts(key)]

    def pairs(self, key: str) -> list[tuple[float, float]]:
        values = [self._parse(key, part, float, "numbers") for part in self._parts(key)]
        if len(values) % 2:
            raise self.error(f"expected pairs of numbers, found {len(values)} numbers", key)
        return list(zip(values[::2], values[1::2], strict=True))

    def _parts(self, key: str) -> list[str]:
        return [part for part in self.text(key).split(",") if part]

    def _parse(self, key: str, text: str, kind: Callable[[str], NumberT], expected: str) -> NumberT:
        try:
            value = kind(text)
        except ValueError as error:
            raise self.error(f"expected {expected}, found {text!r}", key) from error
        if not abs(value) <= MAX_NUMBER:  # nan is not
            raise self.error(f"expected {expected}, found {text!r}", key)
        return value


def read_cfg(path: Path) -> list[Section]:
    """The sections of a file: [net], then the layers. Raises UserError naming the file and the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot read this darknet configuration: {error.strerror}") from error
    sections: list[Section] = []
    for number, line in enumerate(lines, start=1):
        text = "".join(line.partition("#")[0].partition(";")[0].split())  # darknet drops all white space too
        if text.startswith("[") and text.endswith("]"):
            name = text[1:-1]
            sections.append(Section(path, number, ALIASES.get(name, name), len(sections) - 1))
        elif "=" in text and sections:
            key, _, value = text.partition("=")
            sections[-1].options.setdefault(key, (value, number))
        elif text:
            raise UserError(f"{path}:{number}: expected [section], key=value or # comment, found {text[:40]!r}")
    if not sections or sections[0].kind != "net" or len(sections) < 2:
        kinds = ", ".join(f"[{section.kind}]" for section in sections[:3]) or "no section"
        raise UserError(f"{path}: not a darknet configuration: expected [net] and then layers, found {kinds}")
    for section in sections:
        _check(section)
    return sections


def _check(section: Section) -> None:
    if section.kind not in KEYS or (section.kind == "net") != (section.index < 0):
        raise section.error(f"this layer is not known; known: {', '.join(kind for kind in KEYS if kind != 'net')}")
    keys, neutral = KEYS[section.kind], NEUTRAL.get(section.kind, {})
    for key, (value, _) in section.options.items():
        if key in neutral and value != neutral[key]:
            raise section.error(f"not supported, found {value!r}", key)
        close = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
        if close and key not in (*keys, *neutral):
            raise section.error(f"unknown key; did you mean {close[0]!r}?", key)

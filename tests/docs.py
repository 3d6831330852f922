"""The written pages, and what stands in them: blocks, commands, links, headings."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from detkit import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMANDS = ("python tools/", "python benchmarks/", "python -m detkit ", "detkit ", "torchrun ", "make ", "pytest ")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The contents of the fenced blocks of a language."""
    return [match[3] for match in FENCE.finditer(page.read_text(encoding="utf-8")) if match[2] == language]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[str]:
    """Every command of the page: the lines of its shell blocks, then those in its sentences and tables."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]
    return lines + [code for code in inline if code.startswith(COMMANDS)]


def links(page: Path) -> list[str]:
    """The targets of links and pictures, addresses of other sites left out."""
    text = re.sub(r"`[^`]*`", "", prose(page))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("https://")]


def anchors(page: Path) -> set[str]:
    """What a link can name behind `#`: the headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Runs a command of Python or of detkit in this process; returns its status."""
    if words[0] == "detkit" or words[:3] == ["python", "-m", "detkit"]:
        return cli.main(words[words.index("detkit") + 1 :])
    script = ROOT / words[1]
    monkeypatch.setattr(sys, "argv", [str(script), *words[2:]])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    return stop.value.code


class Parsed(Exception):
    """Ends a command when its arguments are read."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


def parse(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The options of a command of Python or of detkit, by its own parser; the command itself does not run."""
    original = argparse.ArgumentParser.parse_args

    def stop(parser: Any, *arguments: Any) -> argparse.Namespace:
        options: argparse.Namespace = original(parser, *arguments)
        if vars(options).keys() == {"command"}:  # `detkit`, before the command's own arguments
            return options
        raise Parsed(options)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed) as parsed:
        run(words, monkeypatch)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", original)
    return parsed.value.options


def split(command: str) -> list[str]:
    """The words of a command, without a comment, the file it writes to, and torchrun's own."""
    words = shlex.split(command.partition(" > ")[0], comments=True)
    return ["python", *words[3:]] if words[0] == "torchrun" else words

"""Finds and loads the annotation files of other tools."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detkit.data.checks import DataError
from detkit.data.text_files import decode_text

SUFFIXES = (".json", ".xml", ".csv")


def annotation_files(path: Path) -> Iterator[Path]:
    """The file itself, or those of a folder and of all folders in it, the upper ones first."""
    if path.is_file():
        yield path
        return
    files = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    yield from sorted(files, key=lambda file: (len(file.parts), file))


def load(path: Path) -> Any:
    """Plain values of a JSON file, the root of an XML file, or the first row of a csv as a tuple. Raises DataError."""
    try:
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as lines:
                return tuple(next(csv.reader(lines), ()))
        content = path.read_bytes()
        return ET.fromstring(content) if path.suffix.lower() == ".xml" else json.loads(decode_text(content))
    except (OSError, ValueError, RecursionError, ET.ParseError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error

"""The records of a prediction: a line each while it runs, joined to one JSON file at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detkit.files import replacing, writing

LINES, JOINED, BEFORE = "detections.jsonl", "detections.json", "earlier_"


class Journal:
    """Appends records to `detections.jsonl` in a folder; `close` makes `detections.json`, a list, of them.

    A process that is killed leaves the lines of what it had done. Records of an earlier prediction are moved aside, as
    `notes` say.
    """

    def __init__(self, folder: Path) -> None:
        self.lines, self.joined = folder / LINES, folder / JOINED
        self.notes: list[str] = []
        with writing(self.lines):
            for path in (self.lines, self.joined):
                if path.exists():
                    path.replace(path.with_name(f"{BEFORE}{path.name}"))
                    self.notes.append(
                        f"{folder} has an earlier prediction: its records are in {BEFORE}{path.name}, and its other "
                        "files stay where no new one has their name"
                    )
            self.file = self.lines.open("w", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        with writing(self.lines):
            self.file.write(json.dumps(record) + "\n")  # escapes all that is not ASCII, names that are no UTF-8 too
            self.file.flush()

    def close(self) -> None:
        with writing(self.lines):
            self.file.close()
        with replacing(self.joined) as file:
            for number, line in enumerate(self._texts()):
                file.write(("[\n" if number == 0 else ",\n").encode() + line.encode())
            file.write(b"\n]\n" if self.lines.stat().st_size else b"[]\n")
        self.lines.unlink()

    def records(self) -> Iterator[dict[str, Any]]:
        """Those that were written."""
        for line in self._texts():
            yield json.loads(line)

    def _texts(self) -> Iterator[str]:
        with self.lines.open(encoding="utf-8") as lines:
            for line in lines:
                yield line.rstrip("\n")

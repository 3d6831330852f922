"""Ids of a COCO file. Some tools write them as text in one table and as numbers in another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

Id = int | str


def plain_id(value: object) -> Id | None:
    """The id that is written as an integer, also as `7.0`, or as text; None for what is no id."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) and value != "" else None


class IdTable:
    """The rows of a table by their ids, which differ from each other."""

    def __init__(self, ids: Sequence[Id]) -> None:
        self.ids = ids
        self._rows = {row_id: row for row, row_id in enumerate(ids)}
        counts = Counter(map(as_number, ids))
        self._rows_by_number = {as_number(i): row for i, row in self._rows.items() if counts[as_number(i)] == 1}

    def find(self, value: object) -> tuple[int | None, bool]:
        """The row that an id refers to, or None, and whether the id is written as in the table.

        `7`, `"7"` and `"007"` are the same id where the table has only one of them.
        """
        row_id = plain_id(value)
        if row_id is None or row_id in self._rows:
            return (None if row_id is None else self._rows[row_id]), True
        return self._rows_by_number.get(as_number(row_id)), False


def as_number(row_id: Id) -> Id:
    """The integer that an id is, also as text; another text as it stands."""
    text = str(row_id).strip() if isinstance(row_id, str) else ""
    match = re.fullmatch(r"([+-]?\d{1,100})(\.0+)?", text, re.ASCII)
    return int(match[1]) if match else row_id

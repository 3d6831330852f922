"""A diagnosis as lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from detkit.data.dataset import plural
from detkit.inspect.doctor.diagnose import SEVERITIES
from detkit.inspect.doctor.findings import Diagnosis, Finding, Place, Table

EXAMPLES = 3  # of a finding
ROWS = 40  # of a table


def describe(diagnosis: Diagnosis) -> Iterator[str]:
    yield diagnosis.subject
    counts = Counter(finding.severity for finding in diagnosis.findings)
    parts = [plural(counts[severity], severity) for severity in SEVERITIES if counts[severity]]
    yield ", ".join(parts) if parts else "nothing is wrong"
    for finding in diagnosis.findings:
        yield from _finding(finding)
    for table in diagnosis.tables:
        yield from _table(table)


def _finding(finding: Finding) -> Iterator[str]:
    yield ""
    yield f"{finding.severity} {finding.code}: {finding.count:,} of {finding.total:,}"
    yield f"  {finding.message}"
    yield f"  fix: {finding.fix}"
    for place in finding.examples[:EXAMPLES]:
        yield f"    {_place(place)}"


def _place(place: Place) -> str:
    box = "" if place.box is None else f" at {', '.join(f'{value:.1f}' for value in place.box)}"
    text = f": {place.text}" if place.text else ""
    return f"{place.split} {place.path}{box}{text}"


def _table(table: Table) -> Iterator[str]:
    rows = [list(table.columns), *([_cell(cell) for cell in row] for row in table.rows[:ROWS])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield ""
    yield table.title
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield f"  {first:<{widths[0]}}  {'  '.join(cells)}"
    if len(table.rows) > ROWS:
        yield f"  ... and {len(table.rows) - ROWS} more"


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"

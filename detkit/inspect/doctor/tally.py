"""How findings are counted: places by split, and only the first of them as examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from detkit.inspect.doctor.findings import Finding, Place, Severity
from detkit.inspect.doctor.reading import Split

MAX_EXAMPLES = 20  # places that a finding has


def by_split(places: Sequence[Place]) -> str:
    """`train 3, val 1`."""
    counts = Counter(place.split for place in places)
    return ", ".join(f"{split} {counts[split]:,}" for split in ("train", "val") if counts[split])


def object_finding(
    code: str,
    severity: Severity,
    rows: Sequence[tuple[Split, np.ndarray]],
    what: str,
    fix: str,
    total: int | None = None,
    texts: Sequence[Sequence[str]] | None = None,
) -> list[Finding]:
    """One finding about objects, or none if there are none.

    rows   of each split the indices of the objects, those worth showing first
    what   follows `3 of 20 objects (train 2, val 1)` in the message
    total  objects of which they are; None: those of all splits that are not ignored
    texts  what is seen at each of the rows
    """
    counts = [len(each) for _, each in rows]
    if not sum(counts):
        return []
    if total is None:
        total = sum(int((~split.dataset.objects.ignore).sum()) for split, _ in rows)
    parts = ", ".join(f"{split.name} {len(each):,}" for split, each in rows if len(each))
    places = []
    for number, (split, each) in enumerate(rows):
        for position, row in enumerate(each[:MAX_EXAMPLES].tolist()):
            places.append(split.object_place(row, texts[number][position] if texts else ""))
    message = f"{sum(counts):,} of {total:,} objects ({parts}) {what}."
    return [Finding(code, severity, sum(counts), total, message, fix, places[:MAX_EXAMPLES])]

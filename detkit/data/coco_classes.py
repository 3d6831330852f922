"""The classes of a COCO file: its categories, put together by their names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detkit.data.checks import DataError
from detkit.data.coco_ids import Id, IdTable, as_number, plain_id
from detkit.structures import Categories

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class COCOClasses:
    """Classes in the order of their ids, which may have gaps and may begin with 0.

    categories  names, which differ, and an id of each
    table       the rows of the file's categories by id
    names       the name of each row
    labels      the index into `categories` of each row; -1 for a heading
    notes       counts of what is unusual, for the summary
    """

    categories: Categories
    table: IdTable
    names: Sequence[str]
    labels: Sequence[int]
    notes: Mapping[str, int]


def coco_classes(content: Mapping[str, Rows], path: Path) -> COCOClasses:
    """The classes of a file. Raises DataError naming `path` where an id or a name is missing or has two meanings.

    Categories of one name are one class. A heading, as Roboflow writes it, is no class: it stands for the categories
    that name it as their `supercategory`, and no annotation uses it.
    """
    rows = content["categories"]
    ids = [plain_id(row.get("id")) for row in rows]
    names = [_name(row.get("name")) for row in rows]
    known = [row_id for row_id in ids if row_id is not None]
    if not rows or len(known) < len(rows) or not all(names):
        raise DataError(f"{path}: expected categories that each have an 'id' and a 'name', got {rows[:3]}")
    row_id, count = Counter(known).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: {count} categories have the id {row_id!r}; each needs its own")
    table = IdTable(known)
    used = _used_rows(content["annotations"], table) if _needs_use(rows, names) else set()
    heading = _heading(rows, names, used)
    members: defaultdict[str, list[int]] = defaultdict(list)
    for row in _in_order(known):
        if row != heading:
            members[names[row]].append(row)
    _check_same_supercategory(members, rows, path)
    labels = [-1] * len(rows)
    for label, name_rows in enumerate(members.values()):
        for row in name_rows:
            labels[row] = label
    first = [next((row for row in name_rows if row in used), name_rows[0]) for name_rows in members.values()]
    notes = {f"heading among the categories left out ({names[heading or 0]!r})": int(heading is not None)}
    notes["name that several categories have read as one class"] = sum(len(r) > 1 for r in members.values())
    categories = Categories(tuple(members), tuple(known[row] for row in first))
    return COCOClasses(categories, table, names, labels, notes)


def match_classes(own: COCOClasses, train: Categories, path: Path) -> COCOClasses:
    """The classes of a file by the names of `train`: `labels` are indices into them, -1 for classes it does not have.

    The ids are the file's own, so that detections can be compared with it; a class that it lacks gets a new one.
    Raises DataError if no name is shared.
    """
    names, ids = own.categories.names, own.categories.ids
    if not set(names) & set(train.names):
        raise DataError(
            f"{path}: none of its categories ({', '.join(names[:8])}) is one of those of the training file "
            f"({', '.join(train.names[:8])}); the classes of both are compared by name"
        )
    label_of = {name: label for label, name in enumerate(train.names)}
    labels = [label_of.get(names[label], -1) if label >= 0 else -1 for label in own.labels]
    id_of = dict(zip(names, ids, strict=True))
    new = max((number for number in map(as_number, ids) if isinstance(number, int)), default=0) + 1
    own_ids = tuple(id_of.get(name, new + label) for label, name in enumerate(train.names))
    return replace(own, categories=Categories(train.names, own_ids), labels=labels)


def _name(value: object) -> str:
    return str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def _in_order(ids: Sequence[Id]) -> list[int]:
    """The rows by their ids as numbers; as the file has them if there is an id that is none."""
    numbers = list(map(as_number, ids))
    if not all(isinstance(number, int) for number in numbers):
        return list(range(len(ids)))
    return sorted(range(len(ids)), key=numbers.__getitem__)


def _needs_use(rows: Rows, names: Sequence[str]) -> bool:
    """Whether it matters which categories the annotations use: looking takes a second in a file of a million."""
    return len(set(names)) < len(names) or _heading(rows, names, set()) is not None


def _used_rows(annotations: Rows, table: IdTable) -> set[int | None]:
    return {table.find(annotation.get("category_id"))[0] for annotation in annotations}


def _heading(rows: Rows, names: Sequence[str], used: set[int | None]) -> int | None:
    """The row that all others name as their supercategory, that has none itself and that is not `used`."""
    for row, (category, name) in enumerate(zip(rows, names, strict=True)):
        others = [other.get("supercategory") for number, other in enumerate(rows) if number != row]
        alone = category.get("supercategory") in (None, "", "none")
        if alone and others and row not in used and all(other == name for other in others):
            return row
    return None


def _check_same_supercategory(members: Mapping[str, Sequence[int]], rows: Rows, path: Path) -> None:
    for name, name_rows in members.items():
        kinds = {str(rows[row].get("supercategory") or "none") for row in name_rows}
        if len(kinds) > 1:
            raise DataError(
                f"{path}: {len(name_rows)} categories have the name {name!r} and differ in their supercategory "
                f"({', '.join(sorted(kinds))}); give each class a name of its own"
            )

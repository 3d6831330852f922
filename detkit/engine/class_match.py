"""The same class under another name: spellings, and the synonyms of VOC, COCO and darknet's `coco.names`."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from detkit.config import Config, UserError, parse_config, read_yaml

# COCO's word for VOC's and darknet's; pottedplant and diningtable differ from COCO's by a space alone
SYNONYMS = {"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv"}
UNUSED = "N/A"  # the name that public models give to ids which were never used
MAX_LISTED = 8  # names in a message


class ClassMap(Config):
    """The content of a file for `--class-map`."""

    class_map: dict[str, str]  # the data's name of a class, by the detector's


def match_classes(names: Sequence[str], others: Sequence[str]) -> list[int]:
    """For each of `names` the index in `others` of the same class, -1 without one.

    The same name first; then the same but for case, spaces, underscores, hyphens and `SYNONYMS`, unless it stands for
    several of either side. A class "N/A", or one whose name occurs twice, matches none.
    """
    matches = [-1] * len(names)
    for spelling in (str, _key):
        keys, other_keys = [spelling(name) for name in names], [spelling(name) for name in others]
        count, other_count = Counter(keys), Counter(other_keys)
        for index, (name, key) in enumerate(zip(names, keys, strict=True)):
            if name != UNUSED and count[key] == other_count[key] == 1:
                matches[index] = other_keys.index(key)
    return matches


def map_classes(detector: Sequence[str], data: Sequence[str], class_map: Mapping[str, str]) -> list[int]:
    """For each class of the detector the index of the data's, -1 without one: by `class_map`, the others by name.

    class_map  the data's name by the detector's; several classes of the detector may be one of the data

    Raises UserError for a name that the detector or the data does not have.
    """
    _check_known("the detector", class_map, detector)
    _check_known("the data", class_map.values(), data)
    free = [name for name in detector if name not in class_map]
    rest = [name for name in data if name not in class_map.values()]
    by_name = dict(zip(free, match_classes(free, rest), strict=True))
    chosen = {name: rest[index] for name, index in by_name.items() if index >= 0} | dict(class_map)
    return [data.index(chosen[name]) if name in chosen else -1 for name in detector]


def shared_classes(detector: Sequence[str], data: Sequence[str], class_map: Mapping[str, str]) -> list[int]:
    """The indices of the data's classes that the detector has too. Raises UserError if there are none."""
    shared = sorted({index for index in map_classes(detector, data, class_map) if index >= 0})
    if not shared:
        raise UserError(
            f"--classes shared: the detector ({listed(detector)}) and the data ({listed(data)}) share no class; "
            "say which is which in a file for --class-map"
        )
    return shared


def describe_match(
    detector: Sequence[str], data: Sequence[str], measured: Sequence[str], labels: Sequence[int]
) -> list[str]:
    """Sentences on classes that have two names, and on those of the data that are not measured.

    labels  for each class of the detector its index in `measured`, -1 for none
    """
    pairs = [(name, measured[label]) for name, label in zip(detector, labels, strict=True) if label >= 0]
    renamed = [f"{name} is {other}" for name, other in pairs if name != other]
    left_out = [name for name in data if name not in measured]
    sentences = [f"classes under another name in the data: {', '.join(renamed)}"] if renamed else []
    if left_out:
        sentences.append(
            f"measured on the {len(measured)} of the data's {len(data)} classes that the detector has too; "
            f"left out: {listed(left_out)}"
        )
    return sentences


def read_class_map(path: Path) -> dict[str, str]:
    """The data's names by the detector's from a YAML file. Raises ConfigError if it is no mapping of names."""
    return parse_config({"class_map": read_yaml(path)}, ClassMap, where=str(path)).class_map


def listed(names: Sequence[str]) -> str:
    """`a, b, c`, shortened where there are many."""
    return ", ".join(names[:MAX_LISTED]) + (f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else "")


def _key(name: str) -> str:
    key = re.sub(r"[\s_-]", "", name).casefold()
    return SYNONYMS.get(key, key)


def _check_known(whose: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {listed(known)}"
            raise UserError(f"--class-map: {whose} has no class {name!r}; {hint}")

"""Which classes of a data set are learned: some of them, or several as one."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from detkit.data.checks import DataError, FilesConfig, RawImage
from detkit.structures import Categories

MAX_NAMES = 20  # classes that one message lists


def merge_classes(names: Iterable[str], merge: Mapping[str, Sequence[str]]) -> list[str]:
    """What each of the names is called after `FilesConfig.merge`."""
    new_name = {old: new for new, olds in merge.items() for old in olds}
    return [new_name.get(name, name) for name in names]


def choose_classes(
    images: Sequence[RawImage], categories: Categories, config: FilesConfig, where: str = "this data"
) -> tuple[list[RawImage], Categories, dict[str, int]]:
    """The images with the classes that `config.merge` and then `config.classes` choose, and counts for the summary.

    The labels of `images` are indices into `categories`, those of the result into its own, where a merged class stands
    in the place of its first. An object of a class that nobody chose is left out, whatever else is wrong with it; one
    without a class (label -1) stays. Raises DataError if `categories` lack a class or have a name that cannot be
    written, or if no object is left; `where` is the data in its message.
    """
    for name in categories.names:
        if re.search("[\\ud800-\\udfff]", name):
            raise DataError(f"{where}: the class {name!a} has half of a character, which no file can hold; rename it")
    if not config.merge and not isinstance(config.classes, tuple):
        return list(images), categories, {}
    merged = merge_classes(categories.names, config.merge)
    chosen = config.classes if isinstance(config.classes, tuple) else tuple(dict.fromkeys(merged))
    _check_known("merge", [old for olds in config.merge.values() for old in olds], categories.names)
    _check_known("classes", chosen, merged)
    label_of = {old: chosen.index(new) if new in chosen else None for old, new in enumerate(merged)}
    label_of[-1] = -1
    counts = Counter(categories.names[item.label] for image in images for item in image.objects if item.label >= 0)
    remaining = []
    for image in images:
        labels = [(item, label_of[item.label]) for item in image.objects]
        objects = tuple(replace(item, label=label) for item, label in labels if label is not None)
        remaining.append(replace(image, objects=objects))
    ids = tuple(categories.ids[merged.index(name)] for name in chosen)
    return remaining, replace(categories, names=chosen, ids=ids), _notes(counts, chosen, config, where)


def _notes(counts: Counter[str], chosen: Sequence[str], config: FilesConfig, where: str) -> dict[str, int]:
    """The objects that are left out, and the classes of the configuration that have none, which may be misspelt.

    counts  the objects of each class before merging
    """
    new_counts: Counter[str] = Counter()
    for old, new in zip(counts, merge_classes(counts, config.merge), strict=True):
        new_counts[new] += counts[old]
    left_out = [name for name, _ in new_counts.most_common() if name not in chosen]
    if counts and len(left_out) == len(new_counts):
        raise DataError(
            f"data.classes: {where} has no object of {_listed(chosen)}; its objects are of {_listed(left_out)}"
        )
    named = config.classes or ()
    absent = [_with_hint(name, left_out) for name in named if not new_counts[name]]
    merged = [old for olds in config.merge.values() for old in olds]
    absent += [_with_hint(old, set(counts) - set(merged)) for old in merged if not counts[old] and old not in chosen]
    listed = _listed([f"{name} {new_counts[name]}" for name in left_out])
    return {
        f"object of other classes left out ({listed})": sum(new_counts[name] for name in left_out),
        f"class without objects ({_listed(absent)})": len(absent),
    }


def _with_hint(name: str, others: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, others, n=1)
    return f"{name}: did you mean {close[0]!r}?" if close else name


def _listed(names: Sequence[str]) -> str:
    more = [f"{len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join([*names[:MAX_NAMES], *more])


def _check_known(setting: str, names: Iterable[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {_listed(list(dict.fromkeys(known)))}"
        raise DataError(f"data.{setting}: the class {unknown[0]!r} is not in this data; {hint}")

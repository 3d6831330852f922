"""Which classes of a data set are learned: some of them, or several as one."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from detkit.data.checks import DataError, FilesConfig, RawImage
from detkit.structures import Categories


def choose_classes(
    images: Sequence[RawImage], categories: Categories, config: FilesConfig
) -> tuple[list[RawImage], Categories, dict[str, int]]:
    """The images with the classes that `config.classes` and `config.merge` choose, and a note on what was left out.

    The labels of `images` are indices into `categories`, those of the result into its own. Objects that the reader
    could not give a class (label -1) stay as they are. Raises DataError naming a class that is not there.
    """
    merged = {old: new for new, olds in config.merge.items() for old in olds}
    _check_known("merge", merged, categories.names)
    name_of = [merged.get(name, name) for name in categories.names]
    names = tuple(dict.fromkeys(name_of))
    chosen = names if not isinstance(config.classes, tuple) else config.classes
    _check_known("classes", chosen, names)
    label_of = [chosen.index(name) if name in chosen else -1 for name in name_of]
    left_out: Counter[str] = Counter()
    kept = []
    for image in images:
        objects = []
        for item in image.objects:
            if item.label < 0:
                objects.append(item)
            elif label_of[item.label] < 0:
                left_out[categories.names[item.label]] += 1
            else:
                objects.append(replace(item, label=label_of[item.label]))
        kept.append(replace(image, objects=tuple(objects)))
    ids = tuple(categories.ids[label_of.index(label)] for label in range(len(chosen)))
    note = f"object of other classes left out ({', '.join(f'{name} {n}' for name, n in left_out.most_common())})"
    return kept, replace(categories, names=chosen, ids=ids), {note: left_out.total()}


def _check_known(setting: str, names: Sequence[str] | dict[str, str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise DataError(f"data.{setting}: the class {unknown[0]!r} is not in this data; {hint}")

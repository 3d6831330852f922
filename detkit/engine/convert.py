"""Writes a data set in another format, and says what could not be carried over."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from detkit.config import UserError
from detkit.data.checks import LabelPolicy
from detkit.data.dataset import ImageDataset, plural
from detkit.data.writers import coco, voc, yolo
from detkit.data.writers.pictures import name_pictures, place
from detkit.engine.convert_source import read_source
from detkit.files import writing
from detkit.structures import Categories

WRITERS: Mapping[str, Any] = {"coco": coco, "voc": voc, "yolo": yolo}


def convert(
    source: Path,
    output: Path,
    to: str,
    *,
    format_name: str | None = None,
    on_bad_label: LabelPolicy = "raise",
    copy: bool = False,
) -> list[str]:
    """Writes the data of `source` to the folder `output`, which must not exist or be empty, in the format `to`.

    format_name   of `source`; None: the one it is seen to have
    on_bad_label  as in a configuration
    copy          copy the pictures; otherwise the files get a second name, which takes no space

    Returns lines for the user: what was read, written and lost, and the section `data` that reads it. The folder is
    there when it is complete. Raises UserError if it is not empty or cannot be written, or if `source` cannot be read.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists already; name another folder, or remove it")
    data = read_source(source, format_name, on_bad_label)
    return [
        f"read {source} as {data.format}",
        *(split + dataset.summary.removeprefix(dataset.name) for split, dataset in data.splits.items()),
        *write_dataset(data.splits, data.categories, output, to, lost=data.lost, copy=copy),
    ]


def write_dataset(
    datasets: Mapping[str, ImageDataset],
    categories: Categories,
    output: Path,
    to: str,
    *,
    lost: Mapping[str, int] | None = None,
    copy: bool = False,
) -> list[str]:
    """Writes data sets, by the names of their splits, as `convert` does; returns lines for the user.

    lost  counts of what is not in the data sets any more
    """
    writer, counts_lost = WRITERS[to], Counter(lost or {})
    splits = name_pictures(datasets, one_folder=writer.ONE_FOLDER, lost=counts_lost)
    with complete_or_not_at_all(output) as folder:
        files = [(p.source, folder / writer.picture_path(split, p.name)) for split in splits for p in splits[split]]
        counts = place(files, copy=copy)
        writer.write(folder, splits, categories, counts_lost)
    settings = writer.settings(output, list(splits), categories)
    section = yaml.safe_dump(settings, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return [
        f"-> {output}: {', '.join(plural(number, noun) for noun, number in counts.items())}, "
        f"splits {', '.join(f'{split} {len(pictures):,}' for split, pictures in splits.items())}",
        *_lost_lines(counts_lost, to),
        f"next, in a configuration: data: {section.strip()}",
    ]


def _lost_lines(lost: Counter[str], to: str) -> Sequence[str]:
    listed = [f"  {plural(number, noun)}" for noun, number in lost.most_common() if number]
    return [f"not carried over to {to}:", *listed] if listed else [f"everything was carried over to {to}"]


@contextmanager
def complete_or_not_at_all(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends, and is removed if the block fails.

    A process that is killed leaves it, under a name that says so. Raises UserError as `writing` does.
    """
    aside = output.with_name(f"{output.name}.incomplete")
    if aside.exists():
        raise UserError(f"{aside}: is left by a conversion that was interrupted, or one that is running; remove it")
    with writing(aside):
        aside.mkdir(parents=True)
    try:
        with writing(aside):
            yield aside
            if output.exists():
                output.rmdir()  # it is empty
            aside.rename(output)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise

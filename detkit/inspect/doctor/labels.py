"""What is wrong with the labels alone: flaws of the files, classes, boxes that repeat or cannot be meant.

Legend: M objects of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from detkit.data.dataset import plural
from detkit.inspect.doctor.findings import Finding, Place, Severity, Table
from detkit.inspect.doctor.reading import Split
from detkit.inspect.doctor.tally import MAX_EXAMPLES, by_split, object_finding
from detkit.ops.iou import box_iou

FEW = 10  # training objects of a class below which it is hardly learned
IMBALANCE = 20  # times as many objects of the largest class as of the smallest
TWICE = 0.95  # IoU from which two boxes are one
WHOLE = 0.99  # part of the picture that a box of the whole picture covers
ONE_PIXEL = 1.0 + 1e-3  # px
CLASSES_LISTED = 10
# Code of each flaw, its severity, what it is, and the fix.
FLAWS: dict[str, tuple[Severity, str, str]] = {
    "picture-unreadable": ("error", "the picture cannot be read", "Replace the file, or remove it from the list."),
    "annotation-unreadable": ("error", "the annotation cannot be read", "Correct the file."),
    "size-disagrees": (
        "error",
        "the annotated size is not that of the picture",
        "If the boxes fit the picture, --fix writes the true size; otherwise annotate the picture again.",
    ),
    "object-unreadable": ("error", "the object cannot be read", "Correct its class or its numbers in the file."),
    "box-not-finite": ("error", "the box is not finite", "Correct it, or let --fix remove it."),
    "box-empty": (
        "error",
        "the box is empty",
        "Correct it, or let --fix remove it; data.on_bad_label: drop_box skips it.",
    ),
    "box-outside": ("error", "the box lies outside its picture", "Correct it, or let --fix remove it."),
    "box-over-border": (
        "warning",
        "the box reaches over the border of its picture",
        "--fix cuts it at the border, as data.on_bad_label: clip does.",
    ),
}


def label_findings(splits: Sequence[Split]) -> list[Finding]:
    return [
        *_flaw_findings(splits),
        *_class_findings(splits),
        *_empty_images(splits),
        *_repeated_boxes(splits),
        *_odd_boxes(splits),
    ]


def class_table(splits: Sequence[Split]) -> Table:
    """Objects and images of each class in both splits."""
    names = splits[0].dataset.categories.names
    columns, numbers = ["class"], []
    for split in splits:
        columns += [f"{split.name} objects", f"{split.name} images", f"{split.name} ignored"]
        objects, images = split.dataset.objects, split.dataset.image_of_object
        pairs = np.unique(np.column_stack([objects.labels, images])[~objects.ignore], axis=0)
        numbers += [class_counts(split), _per_class(pairs[:, 0], len(names))]
        numbers.append(_per_class(objects.labels[objects.ignore], len(names)))
    rows: list[list[str | float]] = [
        [name, *(int(column[label]) for column in numbers)] for label, name in enumerate(names)
    ]
    return Table("Objects by class", columns, rows)


def class_counts(split: Split) -> np.ndarray:
    """int64 `[K]`: objects that count."""
    objects = split.dataset.objects
    return _per_class(objects.labels[~objects.ignore], len(split.dataset.categories))


def _per_class(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(labels.astype(np.int64), minlength=num_classes)


def _flaw_findings(splits: Sequence[Split]) -> Iterator[Finding]:
    flaws = [flaw for split in splits for flaw in split.flaws]
    for code, (severity, what, fix) in FLAWS.items():
        places = [flaw.place for flaw in flaws if flaw.code == code]
        if not places:
            continue
        of_objects = code.startswith(("box", "object"))
        total = sum(split.num_objects if of_objects else split.num_images for split in splits)
        noun = "object" if of_objects else "picture"
        message = f"{len(places):,} of {plural(total, noun)} ({by_split(places)}): {what}."
        yield Finding(code, severity, len(places), total, message, fix, places[:MAX_EXAMPLES])


def _class_findings(splits: Sequence[Split]) -> Iterator[Finding]:
    names = splits[0].dataset.categories.names
    train = class_counts(splits[0])
    val = class_counts(splits[1]) if len(splits) > 1 else None
    if val is not None:
        what = "no object in train, so that the detector cannot learn it"
        fix = "Move pictures of it to train, or leave it out with data.classes."
        yield from _of_classes("class-only-in-val", "error", names, (train == 0) & (val > 0), what, fix, val)
        what = "no object in val, so that it is not measured"
        fix = "Move pictures of it to val: the mean is over the other classes."
        yield from _of_classes("class-only-in-train", "warning", names, (train > 0) & (val == 0), what, fix, train)
    nowhere = train + (0 if val is None else val) == 0
    fix = "Correct the name in data.classes, or leave it out."
    yield from _of_classes("class-without-objects", "warning", names, nowhere, "no object at all", fix, train)
    few = (train > 0) & (train < FEW)
    fix = "Annotate more, merge it with another (data.merge), or show it more often (loader.repeat_threshold)."
    yield from _of_classes("class-few-objects", "warning", names, few, f"fewer than {FEW} training objects", fix, train)
    there = np.flatnonzero(train)
    if len(there) and train[there].max() >= IMBALANCE * train[there].min():
        most, least = int(there[train[there].argmax()]), int(there[train[there].argmin()])
        message = (
            f"train has {int(train[most]):,} objects of {names[most]} but {int(train[least]):,} of {names[least]}, "
            f"{train[most] / train[least]:.0f} times fewer."
        )
        fix = "Rare classes: loader.repeat_threshold shows them more often, train.class_weights makes them count more."
        small = train[there] * IMBALANCE <= train[most]
        yield Finding("class-imbalance", "note", int(small.sum()), len(there), message, fix)


def _of_classes(
    code: str, severity: Severity, names: Sequence[str], chosen: np.ndarray, what: str, fix: str, counts: np.ndarray
) -> Iterator[Finding]:
    labels: list[int] = np.flatnonzero(chosen).tolist()
    if not labels:
        return
    listed = [f"{names[label]} ({int(counts[label]):,})" if counts[label] else names[label] for label in labels]
    more = f" and {len(labels) - CLASSES_LISTED} more" if len(labels) > CLASSES_LISTED else ""
    verb = "has" if len(labels) == 1 else "have"
    subject = f"{len(labels)} of {plural(len(names), 'class')} {verb} {what}"
    message = f"{subject}: {', '.join(listed[:CLASSES_LISTED])}{more}."
    yield Finding(code, severity, len(labels), len(names), message, fix)


def _empty_images(splits: Sequence[Split]) -> Iterator[Finding]:
    places: list[Place] = []
    for split in splits:
        counts = np.bincount(split.dataset.image_of_object, minlength=len(split.dataset))
        places += [split.place(index) for index in np.flatnonzero(counts == 0).tolist()]
    if places:
        total = sum(len(split.dataset) for split in splits)
        message = f"{len(places):,} of {plural(total, 'picture')} ({by_split(places)}) have no objects."
        fix = "Right if they show none: they are trained on as background. Otherwise annotate them."
        yield Finding("image-without-objects", "note", len(places), total, message, fix, places[:MAX_EXAMPLES])


def _repeated_boxes(splits: Sequence[Split]) -> Iterator[Finding]:
    twice, two_classes = [], []
    for split in splits:
        first, second = overlapping_pairs(split)
        labels = split.dataset.objects.labels
        same = labels[first] == labels[second]
        twice.append((split, np.unique(second[same])))
        other, rows = np.unique(second[~same], return_index=True)
        two_classes.append((split, other, [_also(split, row) for row in first[~same][rows].tolist()]))
    fix = "Remove one of the two, or let --fix do it: the second detection of one object counts as missing."
    yield from object_finding("box-twice", "warning", twice, "repeat another box of their class", fix)
    fix = "Decide which class is right, and remove the other box."
    rows_only = [(split, rows) for split, rows, _ in two_classes]
    what = "have the box of an object of another class"
    texts = [text for _, _, text in two_classes]
    yield from object_finding("box-two-classes", "warning", rows_only, what, fix, texts=texts)


def _also(split: Split, row: int) -> str:
    return f"also {split.dataset.categories.names[int(split.dataset.objects.labels[row])]}"


def overlapping_pairs(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """int64 `[N]` each: rows first < second of objects of one picture whose boxes are one (`TWICE`)."""
    objects, images = split.dataset.objects, split.dataset.image_of_object
    rows = np.flatnonzero(~objects.ignore)
    # Two boxes can only be one if their left edges are near: neighbours in that order are compared, until none is.
    rows = rows[np.lexsort((objects.boxes[rows, 0], images[rows]))]
    boxes, images = objects.boxes[rows].astype(np.float64), images[rows]
    pairs = [np.zeros((0, 2), np.int64)]
    for step in range(1, len(rows)):
        a, b = boxes[:-step], boxes[step:]
        near = (images[:-step] == images[step:]) & (b[:, 0] - a[:, 0] <= (1 - TWICE) * (a[:, 2] - a[:, 0]))
        if not near.any():
            break
        at = np.flatnonzero(near)
        iou = box_iou(torch.from_numpy(a[at]), torch.from_numpy(b[at]), paired=True)
        at = at[iou.numpy() > TWICE]
        pairs.append(np.sort(np.column_stack([rows[at], rows[at + step]]), axis=1))
    first, second = np.concatenate(pairs).T
    return first, second


def _odd_boxes(splits: Sequence[Split]) -> Iterator[Finding]:
    whole, thin = [], []
    for split in splits:
        rows = np.flatnonzero(~split.dataset.objects.ignore)
        sides = np.diff(split.dataset.objects.boxes[rows].reshape(-1, 2, 2).astype(np.float64), axis=1)[:, 0]
        pictures = split.sizes[split.dataset.image_of_object[rows]]
        whole.append((split, rows[sides.prod(axis=1) >= WHOLE * pictures.prod(axis=1)]))
        thin.append((split, rows[(sides <= ONE_PIXEL).any(axis=1)]))
    fix = "Right for a close view; a box that an annotation tool has filled in should be drawn again."
    yield from object_finding("box-whole-picture", "note", whole, "cover their whole picture", fix)
    fix = "A stray click: remove it, or let --fix do it."
    yield from object_finding("box-one-pixel", "warning", thin, "are at most one pixel wide or high", fix)

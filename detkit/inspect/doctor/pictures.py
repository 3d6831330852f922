"""What kind of files the pictures are, and which of them are there more than once."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from detkit.config import UserError
from detkit.data.dataset import plural
from detkit.data.pictures import read_picture
from detkit.inspect.doctor.findings import Finding, Place, Severity
from detkit.inspect.doctor.hashing import SIDE, first_alike, thumbnail
from detkit.inspect.doctor.reading import Split
from detkit.inspect.doctor.tally import MAX_EXAMPLES, by_split

AT_LEAST = (2 * SIDE, 2 * SIDE)  # (h, w) of what is decoded, and then looked at
GREY_TOLERANCE = 2  # levels by which the channels of a grey picture may differ
# Code of each kind of file, what its pictures are, and how detkit reads them.
KINDS = {
    "picture-turned": ("turned by EXIF data", "detkit turns them upright: their boxes must have been drawn so too."),
    "picture-grey": ("grey", "detkit gives them three equal channels; nothing need be done."),
    "picture-16-bit": ("of more than 8 bits", "detkit reads the upper 8 of the bits that are used."),
    "picture-alpha": ("with an alpha channel", "detkit leaves it out, as if nothing were transparent."),
    "picture-cmyk": ("CMYK", "detkit converts them to RGB, without their colour profile."),
}


@dataclass(frozen=True, eq=False)
class Look:
    """A file of a split.

    place      of the picture
    thumbnail  uint8 `[SIDE, SIDE]`
    kinds      codes of `KINDS`
    digest     of its bytes if another file has as many, else empty
    """

    place: Place
    thumbnail: np.ndarray
    kinds: tuple[str, ...]
    digest: bytes


def picture_findings(splits: Sequence[Split]) -> list[Finding]:
    """Reads every picture of the splits, JPEGs at a part of their size, in threads."""
    looks = look_at(splits)
    return [*_kind_findings(looks), *_double_findings(looks)]


def look_at(splits: Sequence[Split]) -> list[Look]:
    """Every file of each split once, without those that have become unreadable since they were checked."""
    places = []
    for split in splits:
        every = [split.place(index) for index in range(len(split.dataset))]
        places += list({os.path.realpath(place.path): place for place in reversed(every)}.values())[::-1]
    lengths = {place.path: _length(place.path) for place in places}
    counts = Counter(lengths[place.path] for place in places)
    doubtful = [counts[lengths[place.path]] > 1 for place in places]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        read = pool.map(_look, places, doubtful)
        return [look for look in tqdm(read, "reading pictures", len(places), delay=2, leave=False) if look is not None]


def _length(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def _look(place: Place, with_digest: bool) -> Look | None:
    try:
        image = cv2.resize(read_picture(place.path, AT_LEAST), AT_LEAST, interpolation=cv2.INTER_AREA)
        digest = b""
        if with_digest:
            with open(place.path, "rb") as file:
                digest = hashlib.blake2b(file.read(), digest_size=16).digest()
    except (UserError, OSError):
        return None
    kinds = list(_header_kinds(place.path))
    red, green, blue = cv2.split(image)
    if max(cv2.absdiff(red, green).max(), cv2.absdiff(green, blue).max()) <= GREY_TOLERANCE:
        kinds.append("picture-grey")
    return Look(place, thumbnail(image), tuple(kinds), digest)


def _header_kinds(path: str) -> Iterator[str]:
    try:
        with Image.open(path) as picture:
            if picture.format != "TIFF" and picture.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
                yield "picture-turned"
            samples = str(picture.tile[0].args) if picture.format in ("PNG", "TIFF") and picture.tile else ""
            if picture.mode.startswith(("I", "F")) or ";16" in samples:
                yield "picture-16-bit"
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                yield "picture-alpha"
            if picture.mode == "CMYK":
                yield "picture-cmyk"
    except Exception:  # Pillow raises errors of many kinds, and cannot open some files that detkit reads
        return


def _kind_findings(looks: Sequence[Look]) -> Iterator[Finding]:
    for code, (kind, handling) in KINDS.items():
        places = [look.place for look in looks if code in look.kinds]
        verb = "is" if len(places) == 1 else "are"
        message = f"{len(places):,} of {plural(len(looks), 'picture')} ({by_split(places)}) {verb} {kind}."
        yield from _finding(code, "note", places, len(looks), message, handling)


def _double_findings(looks: Sequence[Look]) -> Iterator[Finding]:
    """What is in both splits, and what is more than once in one of them; a file as it is first, then what it shows."""
    train, val = ([look for look in looks if look.place.split == name] for name in ("train", "val"))
    both = _doubles(val, train)
    message = "{} a file in train with the same bytes."
    fix = "The score says less than it seems: leave each picture in one split only."
    yield from _across("same-file-across-splits", both[0], len(val), message, fix)
    message = "{} a picture in train that looks the same."
    fix = "The score is better than on new pictures: put each scene or video into one split only."
    yield from _across("near-duplicate-across-splits", both[1], len(val), message, fix)
    inside = [_doubles(part) for part in (train, val)]
    same, near = ([place for pair in inside for place in pair[number]] for number in (0, 1))
    message = f"{plural(len(same), 'picture')} ({by_split(same)}) repeat the bytes of another one of their split."
    fix = "Remove them if that is not on purpose: they count twice."
    yield from _finding("same-file-in-split", "note", same, len(looks), message, fix)
    message = f"{plural(len(near), 'picture')} ({by_split(near)}) look the same as another one of their split."
    fix = "Video frames are so; otherwise remove them, because they count more than others."
    yield from _finding("near-duplicate-in-split", "note", near, len(looks), message, fix)


def _across(code: str, places: Sequence[Place], total: int, message: str, fix: str) -> Iterator[Finding]:
    subject = f"{len(places):,} of {plural(total, 'picture')} of val {'has' if len(places) == 1 else 'have'}"
    yield from _finding(code, "warning", places, total, message.format(subject), fix)


def _doubles(queries: Sequence[Look], pool: Sequence[Look] | None = None) -> tuple[list[Place], list[Place]]:
    """Those of `queries` whose bytes are in `pool`, and those that only look like one of it; None: like an earlier."""
    first: dict[bytes, Look] = {}
    for look in pool or ():
        first.setdefault(look.digest, look)
    same: dict[int, Place] = {}
    for number, look in enumerate(queries):
        if look.digest and look.digest in first:
            same[number] = _beside(look, first[look.digest], "the same bytes as")
        elif pool is None:
            first[look.digest] = look
    alike = first_alike(_thumbnails(queries), None if pool is None else _thumbnails(pool))
    others = queries if pool is None else pool
    near = [
        _beside(look, others[alike[number]], "looks like")
        for number, look in enumerate(queries)
        if number not in same and alike[number] >= 0
    ]
    return list(same.values()), near


def _thumbnails(looks: Sequence[Look]) -> np.ndarray:
    return np.array([look.thumbnail for look in looks], np.uint8).reshape(-1, SIDE, SIDE)


def _beside(look: Look, other: Look, text: str) -> Place:
    where = look.place
    return Place(where.split, where.image_id, where.path, None, f"{text} {other.place.split} {other.place.path}")


def _finding(
    code: str, severity: Severity, places: Sequence[Place], total: int, message: str, fix: str
) -> Iterator[Finding]:
    if places:
        yield Finding(code, severity, len(places), total, message, fix, places[:MAX_EXAMPLES])

"""Flags of annotation files: VOC's `difficult`, COCO's `iscrowd`, as annotation tools write them."""

from __future__ import annotations

_YES = ("1", "1.0", "true", "yes")
_NO = ("0", "0.0", "false", "no", "unspecified", "")


def parse_flag(value: object) -> bool | None:
    """Whether a flag is set: a text in any case, a number or a bool; None, or blank text, is a flag left out: no.

    Returns None where the value means neither: the reader lists it as a problem, as a guess may hide objects.
    """
    text = "" if value is None else str(value).strip().lower()
    return True if text in _YES else False if text in _NO else None

"""Parts of a detector, by the names that stand before its parameters: `backbone`, `neck`, `head`, `backbone.layer4`.

A star stands for any one step: `head.encoder.layers.*.attention`.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from detkit.config import UserError, nearest


def is_in(name: str, part: str) -> bool:
    """Whether a parameter or module of this name belongs to the part."""
    names, steps = name.split("."), part.split(".")
    return len(names) >= len(steps) and all(step in ("*", own) for step, own in zip(steps, names, strict=False))


def part_names(detector: nn.Module, above: str = "") -> list[str]:
    """The parts with parameters that lie directly below the part `above`; "": those of the whole detector."""
    depth = above.count(".") + 2 if above else 1
    names = (name for name, _ in detector.named_parameters() if not above or is_in(name, above))
    return list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names))


def check_parts(detector: nn.Module, parts: Iterable[str], setting: str) -> None:
    """Raises UserError naming `setting` and what there is unless each of `parts` has a parameter."""
    for part in parts:
        steps = part.split(".")
        for depth in range(len(steps)):
            above, name = ".".join(steps[:depth]), ".".join(steps[: depth + 1])
            known = part_names(detector, above)
            if not any(is_in(one, name) for one in known):
                raise UserError(
                    f"{setting}: {name!r} is no part of this {type(detector).__name__}{nearest(name, known)}"
                )

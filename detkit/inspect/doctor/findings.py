"""What the doctor says: findings, each with a stable code, and tables of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from detkit.structures import ImageId

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Place:
    """Where an example of a finding is.

    split     `train` or `val`
    image_id  of the picture
    path      of the picture
    box       xyxy in pixels of the picture, if it is one object
    text      what is seen there: `dog, 3 x 2 px`
    """

    split: str
    image_id: ImageId
    path: str
    box: tuple[float, float, float, float] | None = None
    text: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that a user should know.

    code      stable, lower case with hyphens: `box-twice`
    severity  error: training or evaluation is wrong; warning: the score suffers; note: worth knowing
    count     how many objects, pictures or classes
    total     of how many
    message   one sentence with the numbers
    fix       one sentence: what to do, with the setting or command
    examples  a few places
    """

    code: str
    severity: Severity
    count: int
    total: int
    message: str
    fix: str
    examples: Sequence[Place] = ()


@dataclass(frozen=True)
class Table:
    """Numbers that no finding needs: objects by class in both splits, a histogram of sides.

    Rows have a text first and numbers after it, one for each of `columns` but the first.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]


@dataclass(frozen=True)
class Diagnosis:
    """
    subject   what was looked at, in one line
    findings  the worst first
    tables    in the order of the page
    """

    subject: str
    findings: Sequence[Finding] = ()
    tables: Sequence[Table] = field(default_factory=tuple)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

"""What an exported file says of itself, so that it is read back without anything beside it."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import ValidationError, field_validator

from detkit.config import Config, UserError
from detkit.data.dataset import plural
from detkit.nn.input import InputConfig
from detkit.nn.proposals import ProposalsConfig
from detkit.structures import Categories, Clip

KEY = "detkit"  # under which the text stands in the metadata of a file
Pictures = Literal["exact", "resize"]


class Metadata(Config):
    """
    version        detkit's
    detector       its class
    classes        those of `Categories.to_plain`
    input          the detector's input spec
    stride         px: H and W of a canvas are multiples of it
    clip           the frames that it takes for each image; null: the image alone
    pictures       exact: the file takes pictures on their canvas; resize: as they are, and resizes them itself
    raw            the file gives the outputs of the network, no detections
    precision      of its weights and computations
    batch          pictures that it takes at once; null: any number
    canvas         (h, w) px that it takes; null: any
    proposals      where the proposals of a detector that is given them come from
    outputs        names, in the order of the file
    configuration  YAML of the run; null: public weights
    licence        of the weights
    """

    format: Literal["detkit export 1"] = "detkit export 1"
    version: str
    detector: str
    classes: dict[str, Any]
    input: InputConfig
    stride: int
    clip: Clip | None = None
    pictures: Pictures
    raw: bool
    precision: Literal["float32", "int8"] = "float32"
    batch: int | None
    canvas: tuple[int, int] | None
    proposals: ProposalsConfig | None
    outputs: tuple[str, ...]
    configuration: str | None
    licence: str

    @field_validator("classes")
    @classmethod
    def _are_categories(cls, plain: dict[str, Any]) -> dict[str, Any]:
        try:
            Categories.from_plain(plain)
        except (KeyError, TypeError) as error:
            raise ValueError("expected names and ids") from error
        return plain

    def to_text(self) -> str:
        return json.dumps(self.model_dump(mode="json"))

    @property
    def categories(self) -> Categories:
        return Categories.from_plain(self.classes)


def parse_metadata(text: str | None, file: object) -> Metadata:
    """Raises UserError if the text is not that of an exported file of this version."""
    if text is None:
        raise UserError(
            f"{file}: not a file that detkit exported: it has no metadata under {KEY!r}; see `detkit export`"
        )
    try:
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        differences = plural(error.error_count(), "difference")
        raise UserError(
            f"{file}: its metadata are not those of this version of detkit ({differences}, the "
            f"first at {'.'.join(map(str, error.errors()[0]['loc'])) or 'the text'}); export the detector again"
        ) from error

"""The classes of a data set, and the points of an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeypointCategories:
    """The points of an object.

    names       P names
    flip_pairs  pairs of points that change places when the picture is mirrored, such as left and right eye
    skeleton    pairs of points that a drawing joins
    sigmas      P spreads, in parts of the object's size, by which COCO scores the distance of a point
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True)
class Categories:
    """The classes of a data set. A label is an index into them.

    names      K names; public models name a class that was never used "N/A", so names may repeat
    ids        K ids that the data set itself uses, such as COCO's 1 to 90 with gaps; some tools use text
    keypoints  what the keypoints of an object are, if it has any
    """

    names: tuple[str, ...]
    ids: tuple[int | str, ...]
    keypoints: KeypointCategories | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("Categories.names: expected at least one class")
        if len(self.ids) != len(self.names):
            raise ValueError(f"Categories.ids: expected {len(self.names)}, one a name, got {len(self.ids)}")

    @staticmethod
    def of_names(names: Sequence[str]) -> Categories:
        """Categories whose ids count from 1."""
        return Categories(tuple(names), tuple(range(1, len(names) + 1)))

    def __len__(self) -> int:
        return len(self.names)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a checkpoint; `from_plain` reads them back."""
        plain: dict[str, Any] = {"names": list(self.names), "ids": list(self.ids)}
        if self.keypoints:
            plain["keypoints"] = {
                "names": list(self.keypoints.names),
                "flip_pairs": [list(pair) for pair in self.keypoints.flip_pairs],
                "skeleton": [list(pair) for pair in self.keypoints.skeleton],
                "sigmas": list(self.keypoints.sigmas),
            }
        return plain

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Categories:
        keypoints = plain.get("keypoints")
        if keypoints:
            keypoints = KeypointCategories(
                tuple(keypoints["names"]),
                tuple((a, b) for a, b in keypoints["flip_pairs"]),
                tuple((a, b) for a, b in keypoints["skeleton"]),
                tuple(keypoints["sigmas"]),
            )
        return Categories(tuple(plain["names"]), tuple(plain["ids"]), keypoints)

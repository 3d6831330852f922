"""What `detkit predict` and `detkit serve` can be told about the detections themselves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from detkit.config import Config

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class PredictionConfig(Config):
    score_threshold: Share = 0.5  # detections that score less are left out of everything
    class_thresholds: dict[str, Share] = Field(default_factory=dict)  # instead of that one, by name of the class
    classes: tuple[str, ...] = ()  # detections of other classes are left out; empty: none are
    max_detections: int | None = Field(None, ge=1)  # of a picture, the best ones; null: as many as the detector gives
    tile: int | None = Field(None, ge=32)  # px: detects on overlapping squares of this size, and on the whole picture
    overlap: float = Field(0.2, ge=0, lt=1)  # of two neighbouring tiles, in parts of their size
    tta: tuple[Literal["flip", "scales"], ...] = ()  # also detects on changed pictures, and joins what it finds
    track: Literal["bytetrack", "sort"] | None = None  # ids of objects through the frames of a video
    tubes: bool = False  # joins the detections of a video over time, when it has ended
    batch_size: int = Field(8, ge=1)  # the most pictures of one size, or tiles, at once

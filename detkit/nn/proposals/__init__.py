"""Where regions come from when no network of the detector proposes them: one of `ProposalsConfig`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from detkit.config import Config, PathText
from detkit.nn.proposals.selective_search import SelectiveSearchConfig


class FileProposalsConfig(Config):
    """Files that others have published, or of one's own, for all images of both splits.

    paths          COCO results `.json`, or selective search's `.mat` (of Uijlings or Girshick)
    max_boxes      of an image, the best; null: all
    allow_missing  an image that the files do not know has no proposals; false: the files are refused
    """

    at_test: ClassVar[tuple[str, ...]] = ("*",)

    name: Literal["file"] = "file"
    paths: tuple[PathText, ...] = Field(min_length=1)
    max_boxes: int | None = Field(None, ge=1)
    allow_missing: bool = False


class DetectorProposalsConfig(Config):
    """The region proposal network of a trained Faster R-CNN.

    source     run, checkpoint or public weights, as `tools/eval.py` takes them
    max_boxes  of an image, the best; null: all that its `post_nms_top_k_test` lets through
    """

    at_test: ClassVar[tuple[str, ...]] = ("*",)

    name: Literal["detector"] = "detector"
    source: PathText
    max_boxes: int | None = Field(300, ge=1)


ProposalsConfig = Annotated[
    SelectiveSearchConfig | FileProposalsConfig | DetectorProposalsConfig, Field(discriminator="name")
]

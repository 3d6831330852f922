"""The names of the protocols and the settings of an evaluation. Neither torch nor numpy is imported here."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field

from detkit.config import Config

Protocol = Literal["voc07", "voc10", "coco"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

CocoBackend = Literal["pycocotools", "fast"]
MAX_DETECTIONS = 100  # COCO's, of an image and class


class EvalConfig(Config):
    """
    protocol        the protocol whose headline number selects the best checkpoint
    batch_size      images of a batch
    coco_backend    the program that computes the COCO numbers: both give the same bits, `fast` in a hundredth of the
                    time
    amp             mixed precision of the detector: slightly other numbers, faster where the device has bf16
    max_detections  that COCO's numbers count of an image and class, the best ones; 100 as published. A detector gives
                    no more than the `max_detections` of its selection; above 10, which is another of COCO's limits
    """

    at_test: ClassVar[tuple[str, ...]] = ("batch_size", "coco_backend", "amp", "max_detections")

    protocol: Protocol = "voc07"
    batch_size: int = Field(8, ge=1)
    coco_backend: CocoBackend = "pycocotools"
    amp: Literal["off", "bf16"] = "off"
    max_detections: int = Field(MAX_DETECTIONS, gt=10)

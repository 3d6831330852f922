"""The names of the protocols and the settings of an evaluation. Neither torch nor numpy is imported here."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from detkit.config import Config

Protocol = Literal["voc07", "voc10", "coco"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

CocoBackend = Literal["pycocotools", "fast"]


class EvalConfig(Config):
    """
    protocol      the protocol whose headline number selects the best checkpoint
    batch_size    images of a batch
    coco_backend  the program that computes the COCO numbers: both give the same bits, `fast` in a hundredth of the time
    amp           mixed precision of the detector: slightly other numbers, faster where the device has bf16
    """

    protocol: Protocol = "voc07"
    batch_size: int = Field(8, ge=1)
    coco_backend: CocoBackend = "pycocotools"
    amp: Literal["off", "bf16"] = "off"

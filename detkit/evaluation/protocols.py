"""The names of the protocols and the settings of an evaluation. Neither torch nor numpy is imported here."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal, get_args

from pydantic import Field

from detkit.config import Config

Protocol = Literal["voc07", "voc10", "coco", "coco_segm", "coco_keypoints", "tubes"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

Measured = Literal["boxes", "masks", "keypoints"]
MEASURED: dict[Protocol, Measured] = {
    "voc07": "boxes",
    "voc10": "boxes",
    "coco": "boxes",
    "coco_segm": "masks",
    "coco_keypoints": "keypoints",
    "tubes": "boxes",  # over the frames of videos
}

CocoBackend = Literal["pycocotools", "fast"]
MAX_DETECTIONS = 100  # COCO's, of an image and class
KEYPOINT_DETECTIONS = 20  # and where keypoints are compared
COCO_PROTOCOLS: tuple[Protocol, ...] = ("coco", "coco_segm", "coco_keypoints")  # that `coco_backend` computes
LIMITED_PROTOCOLS: tuple[Protocol, ...] = ("coco", "coco_segm")  # whose number of detections can be chosen


def protocols_of(columns: Collection[str]) -> tuple[Protocol, ...]:
    """All that measure boxes or one of `columns`: masks, keypoints, tubes."""
    possible = [protocol for protocol in PROTOCOLS if MEASURED[protocol] in ("boxes", *columns)]
    return tuple(protocol for protocol in possible if protocol != "tubes" or "tubes" in columns)


class LinkConfig(Config):
    """How detections become tubes (see `link_tubelets`). The defaults are the published ones. Thresholds are of mean
    IoU over frames, unless they say otherwise.
    """

    at_test: ClassVar[tuple[str, ...]] = ("*",)

    nms_threshold: float = Field(0.3, ge=0, le=1)  # above it a tubelet is suppressed by a better one of its frame
    per_frame: int = Field(10, ge=1)  # best tubelets of a class that start at one frame
    min_overlap: float = Field(0.2, ge=0, le=1)  # of a tubelet with the end of the tube that it extends
    max_misses: int = Field(5, ge=1)  # a tube ends after so many frames in a row without a tubelet to extend it
    min_score: float = Field(0.01, ge=0)  # of a tube, the mean over its tubelets
    min_frames: int = Field(15, ge=1)  # of a tube
    tube_nms_threshold: float = Field(0.3, ge=0, le=1)  # spatio-temporal IoU, between tubes of a class


class EvalConfig(Config):
    """
    protocol        the protocol whose headline number selects the best checkpoint; coco_segm measures masks,
                    coco_keypoints keypoints and tubes the objects of videos over time, the others boxes
    batch_size      images of a batch
    coco_backend    the program that computes the COCO numbers: both give the same bits, `fast` those of boxes in a
                    hundredth of the time, of masks and keypoints in a fifth
    amp             mixed precision of the detector: slightly other numbers, faster where the device has bf16
    max_detections  that COCO's numbers of boxes and masks count of an image and class, the best ones; 100 as published
                    (of keypoints always 20). A detector gives no more than the `max_detections` of its selection; above
                    10, which is another of COCO's limits
    link            how the detections of single frames become the tubes of protocol tubes
    """

    at_test: ClassVar[tuple[str, ...]] = ("batch_size", "coco_backend", "amp", "max_detections", "link")

    protocol: Protocol = "voc07"
    batch_size: int = Field(8, ge=1)
    coco_backend: CocoBackend = "pycocotools"
    amp: Literal["off", "bf16"] = "off"
    max_detections: int = Field(MAX_DETECTIONS, gt=10)
    link: LinkConfig = LinkConfig()

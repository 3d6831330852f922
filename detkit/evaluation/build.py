"""Builds the evaluators of protocols from their names."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from detkit.config import UserError
from detkit.evaluation.coco import COCOEvaluator
from detkit.evaluation.evaluator import Evaluator
from detkit.evaluation.protocols import (
    MAX_DETECTIONS,
    MEASURED,
    PROTOCOLS,
    CocoBackend,
    LinkConfig,
    Protocol,
    protocols_of,
)
from detkit.evaluation.store import DetectionStore
from detkit.evaluation.video import VideoEvaluator
from detkit.evaluation.voc import VOCEvaluator
from detkit.structures import Column


def choose_protocols(
    protocols: Sequence[Protocol] | None,
    store: DetectionStore,
    columns: Collection[Column],
    owner: str,
    unusual: Sequence[str] = (),
) -> tuple[Protocol, ...]:
    """`protocols`; where there are None all that the detections and the data of `store` have what they measure for.

    columns  what the detections have beside boxes
    owner    whose detections they are, in the message
    unusual  what is unusual in the data, which may be why they lack something
    Raises UserError for a protocol that measures what one of them lacks.
    """
    if protocols is None:
        return protocols_of({*(set(columns) & set(store.columns)), *(["tubes"] if store.has_tubes else [])})
    for protocol in protocols:
        if protocol == "tubes" and not store.has_tubes:
            raise UserError(
                "protocol tubes: measures objects over the frames of videos, and the validation data are no videos, or "
                "their objects have no tracks; measure boxes, by voc07, voc10 or coco"
            )
        measured = MEASURED.get(protocol, "boxes")
        if measured == "boxes":
            continue
        if measured not in columns:
            raise UserError(
                f"protocol {protocol}: measures {measured}, and {owner} gives none; measure its boxes, by voc07, voc10 "
                "or coco"
            )
        if measured not in store.columns and store.num_objects:
            why = f" ({'; '.join(unusual)})" if unusual else ""
            raise UserError(
                f"protocol {protocol}: measures {measured}, and no object of the validation data has any{why}; "
                "annotate them, or measure boxes, by voc07, voc10 or coco"
            )
    return tuple(protocols)


def build_evaluators(
    protocols: Sequence[Protocol],
    store: DetectionStore,
    *,
    coco_backend: CocoBackend = "pycocotools",
    max_detections: int = MAX_DETECTIONS,
    link: LinkConfig | None = None,
) -> dict[Protocol, Evaluator]:
    """An evaluator of each protocol; all read the detections of `store`. The options are those of `EvalConfig`.

    Raises UserError if COCO is among the protocols and `coco_backend` cannot run here.
    """
    return {protocol: _build(protocol, store, coco_backend, max_detections, link) for protocol in protocols}


def _build(
    protocol: Protocol,
    store: DetectionStore,
    coco_backend: CocoBackend,
    max_detections: int,
    link: LinkConfig | None,
) -> Evaluator:
    match protocol:
        case "voc07" | "voc10":
            return VOCEvaluator(store, eleven_point=protocol == "voc07")
        case "coco" | "coco_segm" | "coco_keypoints":
            measured = MEASURED[protocol]
            return COCOEvaluator(store, measured=measured, backend=coco_backend, max_detections=max_detections)
        case "tubes":
            return VideoEvaluator(store, link)
        case _:
            raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")

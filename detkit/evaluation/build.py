"""Builds the evaluators of protocols from their names."""

from __future__ import annotations

from collections.abc import Sequence

from detkit.evaluation.coco import COCOEvaluator
from detkit.evaluation.evaluator import Evaluator
from detkit.evaluation.protocols import MAX_DETECTIONS, PROTOCOLS, CocoBackend, Protocol
from detkit.evaluation.store import DetectionStore
from detkit.evaluation.voc import VOCEvaluator


def build_evaluators(
    protocols: Sequence[Protocol],
    store: DetectionStore,
    *,
    coco_backend: CocoBackend = "pycocotools",
    max_detections: int = MAX_DETECTIONS,
) -> dict[Protocol, Evaluator]:
    """An evaluator of each protocol; all read the detections of `store`. The options are those of `EvalConfig`.

    Raises UserError if COCO is among the protocols and `coco_backend` cannot run here.
    """
    return {protocol: _build(protocol, store, coco_backend, max_detections) for protocol in protocols}


def _build(protocol: Protocol, store: DetectionStore, coco_backend: CocoBackend, max_detections: int) -> Evaluator:
    match protocol:
        case "voc07" | "voc10":
            return VOCEvaluator(store, eleven_point=protocol == "voc07")
        case "coco":
            return COCOEvaluator(store, backend=coco_backend, max_detections=max_detections)
        case _:
            raise ValueError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")

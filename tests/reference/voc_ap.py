"""VOC average precision by the letter of the rules, one detection at a time (`[x1, y1, x2, y2]` continuous boxes)."""

import math

from detkit.structures import Detections, GroundTruth


def voc_ap(
    ground_truth: list[GroundTruth], detections: list[Detections], label: int, eleven_point: bool, strict: bool
) -> float:
    """AP of one class; nan without an object that is not difficult."""
    rows = [
        (float(score), number, box)
        for number, image_detections in enumerate(detections)
        for box, score, its_label in zip(
            image_detections.boxes.tolist(), image_detections.scores, image_detections.labels, strict=True
        )
        if its_label == label
    ]
    rows.sort(key=lambda row: -row[0])
    num_objects = sum(
        its_label == label and not ignore
        for image in ground_truth
        for its_label, ignore in zip(image.objects.labels, image.objects.ignore, strict=True)
    )
    if num_objects == 0:
        return math.nan
    taken: set[tuple[int, int]] = set()
    true_positives = false_positives = 0
    curve: list[tuple[float, float]] = []
    for _, number, box in rows:
        objects = ground_truth[number].objects
        best, best_overlap = -1, -1.0
        for index in range(len(objects)):
            if objects.labels[index] == label and box_iou(box, objects.boxes[index].tolist()) > best_overlap:
                best, best_overlap = index, box_iou(box, objects.boxes[index].tolist())
        if best_overlap > 0.5 or (best_overlap == 0.5 and not strict):
            if not objects.ignore[best]:
                if (number, best) in taken:
                    false_positives += 1
                else:
                    taken.add((number, best))
                    true_positives += 1
        else:
            false_positives += 1
        counted = true_positives + false_positives
        curve.append((true_positives / num_objects, true_positives / counted if counted else 0.0))
    return _eleven_point(curve) if eleven_point else _area(curve)


def box_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


def _eleven_point(curve: list[tuple[float, float]]) -> float:
    # k * 0.1 in floating point is numpy's arange(0, 1.1, 0.1): 0.30000000000000004 and so on
    return sum(max((p for r, p in curve if r >= k * 0.1), default=0.0) for k in range(11)) / 11


def _area(curve: list[tuple[float, float]]) -> float:
    recall = [0.0] + [r for r, _ in curve] + [1.0]
    precision = [0.0] + [p for _, p in curve] + [0.0]
    for k in reversed(range(len(precision) - 1)):
        precision[k] = max(precision[k], precision[k + 1])
    return sum((recall[k + 1] - recall[k]) * precision[k + 1] for k in range(len(recall) - 1))

"""Time and memory of the COCO box metrics: pycocotools, detkit's fast backend and the peers that are installed.

python benchmarks/coco_evaluation.py [--images N] [--reference-images N] [--repeats N]

Every evaluator starts from the same list of `GroundTruth` and of `Detections`, 100 an image, and ends with the twelve
numbers; the peers are given arrays where they take them. pycocotools runs on fewer images, and the numbers are compared
on these. The extra memory is the growth of the peak of a fresh process, imports of the evaluator included; compiled
kernels are on disk by then.
Peers: `pip install hotcoco ultrafast-pycocotools faster-coco-eval`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from timing import interleaved, peak_memory

from detkit.evaluation.coco import coco_metrics
from detkit.formats import to_xywh
from detkit.structures import Categories, Detections, GroundTruth, Objects

CLASSES, DETECTIONS = 80, 100
CATEGORIES = Categories.of_names([str(label) for label in range(CLASSES)])
Scene = tuple[list[GroundTruth], list[Detections]]
Numbers = Sequence[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument(
        "--reference-images", type=int, default=500, help="images for pycocotools, which takes a minute for 5000"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, after an untimed one")
    parser.add_argument("--memory-of", choices=EVALUATORS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(memory(args.memory_of, args.images))
        return
    installed = [name for name, (module, _) in EVALUATORS.items() if find_spec(module)]
    reference, *others = installed
    num_images = dict.fromkeys(others, args.images) | {reference: args.reference_images}
    if "detkit fast" in installed:
        in_a_child("detkit fast", 10)  # compiles the kernels and leaves them on disk
    extra = {name: in_a_child(name, num_images[name]) for name in installed}
    device = torch.device("cpu")
    few, many = scene(args.reference_images), scene(args.images)
    expected = np.array(EVALUATORS[reference][1](*few))
    works = [partial(EVALUATORS[name][1], *many) for name in others]
    (slow,) = interleaved([partial(EVALUATORS[reference][1], *few)], 1, device)
    times = [slow, *interleaved(works, args.repeats, device)]
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch; numpy {np.__version__}; "
        f"median seconds of {args.repeats}\n"
    )
    print("| evaluator | images | objects | detections | seconds | extra memory, MiB | numbers beside pycocotools |")
    print("|---|---|---|---|---|---|---|")
    for name, seconds in zip(installed, times, strict=True):
        ground_truth, detections = few if name == reference else many
        counts = len(ground_truth), sum(len(image.objects) for image in ground_truth), sum(map(len, detections))
        difference = np.abs(np.array(EVALUATORS[name][1](*few)) - expected).max()
        same = "the same bits" if difference == 0 else f"up to {difference:.0e} off"
        print(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} | {seconds:.2f} | {extra[name]} | {same} |")
    for name in [name for name in EVALUATORS if name not in installed]:
        print(f"\n{name}: skipped, it is not installed")


def in_a_child(name: str, num_images: int) -> int:
    command = [sys.executable, __file__, "--memory-of", name, "--images", str(num_images)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def memory(name: str, num_images: int) -> int:
    """MiB by which the peak memory of this process grows."""
    data = scene(num_images)
    before = peak_memory(reset=True)
    EVALUATORS[name][1](*data)
    return peak_memory() - before


def scene(num_images: int) -> Scene:
    """Objects of few classes an image, 1 % of them crowds; several detections of most, and many false ones."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, CLASSES + 1) ** 0.8
    chances /= chances.sum()
    ground_truth, detections = [], []
    for number in range(num_images):
        size = rng.integers(320, 641, 2)
        count = min(int(rng.geometric(1 / 8.2)) - 1, 60)
        boxes, labels = draw_boxes(rng, count, size), rng.choice(CLASSES, 3, p=chances)[rng.integers(0, 3, count)]
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * rng.uniform(0.5, 1, count)
        objects = Objects(boxes.astype(np.float32), labels, rng.random(count) < 0.012, areas.astype(np.float32))
        ground_truth.append(GroundTruth(number, (int(size[1]), int(size[0])), objects))
        near = rng.integers(0, count, 60) if count else np.zeros(0, np.int64)
        blur = rng.choice([0.02, 0.08, 0.3], (len(near), 1), p=[0.3, 0.4, 0.3])
        corners = boxes[near] + blur * rng.normal(0, 1, (len(near), 4)) * np.tile(boxes[near, 2:] - boxes[near, :2], 2)
        corners = np.sort(corners.clip(0, np.tile(size, 2)).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        rest = DETECTIONS - len(near)
        detected = np.vstack([corners, draw_boxes(rng, rest, size)])
        correct = np.append(rng.random(len(near)) < 0.8, np.zeros(rest, np.bool_))
        guesses = np.where(correct, np.append(labels[near], np.zeros(rest, np.int64)), rng.choice(CLASSES, DETECTIONS))
        scores = np.append(rng.beta(0.6, 1.2, len(near)) * (1 - 2 * blur[:, 0]), rng.beta(0.25, 4, rest)).clip(0.001, 1)
        scores = np.where(rng.random(DETECTIONS) < 0.3, scores.round(2), scores)  # some are equal
        order = torch.from_numpy(np.argsort(-scores, kind="stable"))
        unsorted = Objects(
            boxes=torch.from_numpy(detected).float(),
            labels=torch.from_numpy(guesses),
            scores=torch.from_numpy(scores).float(),
        )
        detections.append(Detections(unsorted.take(order), CATEGORIES))
    return ground_truth, detections


def draw_boxes(rng: np.random.Generator, count: int, size: np.ndarray) -> np.ndarray:
    sides = np.minimum(np.exp(rng.normal(4.2, 1, (count, 2))).clip(4), size)
    corners = rng.random((count, 2)) * (size - sides)
    return np.hstack([corners, corners + sides])


def detkit(backend: Any, ground_truth: list[GroundTruth], detections: list[Detections]) -> Numbers:
    return list(coco_metrics(ground_truth, detections, CLASSES, backend=backend)[0].values())


def columns(ground_truth: list[GroundTruth], detections: list[Detections]) -> tuple[list[np.ndarray], np.ndarray]:
    """Image, class, xywh, area and crowd of the objects, and COCO's `[N, 7]` of the detections."""
    objects = Objects.cat([image.objects for image in ground_truth])
    assert objects.area is not None
    object_columns = [
        np.repeat(np.arange(1, len(ground_truth) + 1), [len(image.objects) for image in ground_truth]),
        objects.labels + 1,
        to_xywh(objects.boxes),
        objects.area.astype(np.float64),
        objects.ignore,
    ]
    detected = Objects.cat([image_detections.objects for image_detections in detections]).to_arrays()
    assert detected.scores is not None
    images = np.repeat(np.arange(1, len(detections) + 1), list(map(len, detections)))
    return object_columns, np.column_stack([images, to_xywh(detected.boxes), detected.scores, detected.labels + 1])


def records(num_images: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """COCO's images and categories."""
    images = [{"id": number} for number in range(1, num_images + 1)]
    return images, [{"id": number, "name": str(number)} for number in range(1, CLASSES + 1)]


def hotcoco(ground_truth: list[GroundTruth], detections: list[Detections]) -> Numbers:
    from hotcoco import COCO, COCOeval

    (images, labels, boxes, areas, crowd), results = columns(ground_truth, detections)
    annotated = COCO.from_arrays(*records(len(ground_truth)), images, labels, boxes, area=areas, iscrowd=crowd)
    return twelve_numbers(lambda: COCOeval(annotated, annotated.load_res(results), "bbox"))


def like_pycocotools(module: str, evaluator: str, ground_truth: list[GroundTruth], detections: list[Detections]) -> Any:
    package = __import__(module, fromlist=["COCO"])
    (images, labels, boxes, areas, crowd), results = columns(ground_truth, detections)
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    rows = zip(*(column.tolist() for column in (images, labels, boxes, areas, crowd.astype(int))), strict=True)
    annotations = [{"id": number, **dict(zip(names, row, strict=True))} for number, row in enumerate(rows, start=1)]
    content = dict(zip(("images", "categories"), records(len(ground_truth)), strict=True), annotations=annotations)

    def make_evaluation() -> Any:
        annotated = package.COCO(content)
        return getattr(package, evaluator)(annotated, annotated.loadRes(results), "bbox")

    return twelve_numbers(make_evaluation)


def twelve_numbers(make_evaluation: Callable[[], Any]) -> Numbers:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = make_evaluation()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)[:12]


# The module that an evaluator needs and its function, by name; the first is the reference.
EVALUATORS: dict[str, tuple[str, Callable[[list[GroundTruth], list[Detections]], Numbers]]] = {
    "pycocotools": ("pycocotools", partial(detkit, "pycocotools")),
    "detkit fast": ("numba", partial(detkit, "fast")),
    "hotcoco": ("hotcoco", hotcoco),
    "ultrafast-pycocotools": (
        "ultrafast_pycocotools",
        partial(like_pycocotools, "ultrafast_pycocotools", "COCOeval"),
    ),
    "faster-coco-eval": ("faster_coco_eval", partial(like_pycocotools, "faster_coco_eval", "COCOeval_faster")),
}


if __name__ == "__main__":
    main()

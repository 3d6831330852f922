"""Runs an exported file beside its detector on the same pictures, and measures how far they are apart.

Legend: B images, P regions of a batch, N detections of an image.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from tqdm import tqdm
from typing_extensions import override

from detkit.config import UserError
from detkit.detectors.detector import AnyDetector
from detkit.engine.evaluate import detection_store, label_map, relabel
from detkit.evaluation.build import build_evaluators
from detkit.export.comparison_data import ComparisonData, batch_of, batches
from detkit.export.files import format_of
from detkit.export.graph import DETECTIONS, FURTHER
from detkit.export.metadata import Metadata
from detkit.export.program import PROPOSALS
from detkit.export.report_text import (
    MAX_SCORE_DIFFERENCE,
    MIN_IOU,
    MIN_SCORE,
    REGION_DISTANCE,
    Both,
    Bounds,
    Matches,
    Report,
)
from detkit.export.runtime import ExportedDetector, Runner, open_runner
from detkit.ops.iou import box_iou
from detkit.structures import Batch, Detections, Size

__all__ = ["Bounds", "Report", "compare"]

BOUNDS = Bounds()
METRICS = ("AP", "AP50")  # of COCO's
FAR = 1e9  # px, where regions lie that are not a number
REPEATS = 5  # timed runs of each side
Limited = tuple[Detections, int]  # the detections of an image, and the number above which they are cut


@torch.no_grad()
def compare(
    detector: AnyDetector,
    program: ExportedProgram,
    complete: Path,
    result: Path,
    data: ComparisonData,
    bounds: Bounds = BOUNDS,
) -> Report:
    """
    detector  what was exported; set to evaluation
    program   with the outputs of the network, beside the detections where the form has them
    complete  the same as a file
    result    the file for the user
    """
    detector.eval()
    runner, metadata = open_runner(result)
    pair = ProgramAndFile(program, open_runner(complete)[0])
    file, both = (_as_detector(part, metadata) for part in (runner, pair))
    in_program = _detect(both, batches(file, data), raw=metadata.raw)
    in_file: list[Limited] = []
    in_torch: list[Limited] = []
    if not metadata.raw:
        in_file = _detect(file, batches(file, data))
        in_torch = _detect(detector, _batches_in_torch(detector, data, metadata))
    resizes = metadata.pictures == "resize"
    metrics, no_metrics = measure(detector, data, in_torch, in_file)
    return Report(
        detector=metadata.detector,
        format=format_of(result),
        precision=metadata.precision,
        pictures=metadata.pictures,
        raw=metadata.raw,
        mebibytes=_mebibytes(result),
        data=data.label,
        batch_sizes=tuple(sorted({batch for batch, _ in pair.shapes})),
        canvases=tuple(sorted({size for _, size in pair.shapes})),
        raw_differences=pair.differences,
        regions=pair.regions,
        stray_regions=pair.strays,
        matches=None if metadata.raw else match_all(in_program if resizes else in_torch, in_file),
        matches_with_opencv=match_all(in_torch, in_file) if resizes and not metadata.raw else None,
        metrics=metrics,
        no_metrics=no_metrics,
        milliseconds=_milliseconds(detector, file, data),
        bounds=bounds,
    )


class ProgramAndFile(Runner):
    """Runs a program in torch and its file on the same inputs, and answers with what the program gives.

    differences  the largest of each output of the network so far
    regions      that were compared; `strays` of either side had no counterpart
    shapes       (B, (h, w)) of the images so far
    """

    metadata = None

    def __init__(self, program: ExportedProgram, file: Runner) -> None:
        self.program, self.file = program.module(), file
        self.differences: dict[str, float] = {}
        self.regions = self.strays = 0
        self.shapes: set[tuple[int, Size]] = set()

    @override
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch, *_, height, width = inputs["images"].shape
        self.shapes.add((batch, (height, width)))
        expected = self.program(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        self._compare(expected, {name: torch.tensor(value) for name, value in self.file(inputs).items()})
        return {name: value.numpy() for name, value in expected.items()}

    def _compare(self, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> None:
        """Rows that belong to a region are compared with those of its counterpart, as equal scores have no order."""
        owners = [name.removesuffix("regions.boxes") for name in expected if name.endswith(".regions.boxes")]
        rows = {owner: self._match_regions(expected, actual, f"{owner}regions.") for owner in owners}
        for name, value in expected.items():
            if not value.is_floating_point() or name in DETECTIONS or ".regions." in name:
                continue
            other = actual[name]
            if name in FURTHER:
                one_rows, other_rows = match_rows(expected, actual)
                if not len(one_rows):  # with 8 bits all boxes may be others: nothing was compared
                    continue
                value, other = value.flatten(0, 1)[one_rows], other.flatten(0, 1)[other_rows]
            for owner in filter(name.startswith, owners):
                value, other = value[rows[owner][0]], other[rows[owner][1]]
            largest = difference(value, other, boxes=name.endswith((".boxes", "tubes")))
            self.differences[name] = max(largest, self.differences.get(name, 0.0))

    def _match_regions(
        self, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], prefix: str
    ) -> tuple[Tensor, Tensor]:
        """Rows int64 `[n]` of regions of the program and of their counterparts."""
        columns = ("boxes", "images", "valid")
        one, other = ([outputs[prefix + column] for column in columns] for outputs in (expected, actual))
        rows, other_rows, strays = match_regions(one, other)
        self.regions += len(rows)
        self.strays += strays
        return rows, other_rows


def difference(expected: Tensor, actual: Tensor, *, boxes: bool = False) -> float:
    """The largest |actual - expected| / max(1, |expected|); inf where one is not a number or the shapes differ.

    boxes  rows `[..., 4]`: in place of |expected| the largest of the row. A side near 0 is the difference of a centre
           and half a width, and as exact as those are
    """
    if actual.shape != expected.shape:
        return float("inf")
    scale = expected.double().abs()
    if boxes:
        scale = scale.amax(dim=-1, keepdim=True)
    relative = (actual.double() - expected.double()).abs() / scale.clamp(min=1)
    relative = torch.where(actual == expected, 0.0, relative)  # infinities of the same sign too
    return float(relative.nan_to_num(nan=float("inf")).max()) if relative.numel() else 0.0


def match_regions(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[Tensor, Tensor, int]:
    """The nearest region of `other` for each of `one`, in the same image.

    one, other  boxes `[P, 4]`, images `[P]` and valid `[P]`, see `Regions`

    Returns rows int64 `[n]` of either, and how many valid regions of both are farther than `REGION_DISTANCE` from all.
    """
    from scipy.spatial import KDTree

    rows, other_rows, strays = [], [], 0
    for image in set(one[1].tolist()):
        indices, other_indices = (
            torch.nonzero((images == image) & valid).squeeze(1) for _, images, valid in (one, other)
        )
        boxes = one[0][indices].nan_to_num(nan=-FAR).numpy()
        other_boxes = other[0][other_indices].nan_to_num(nan=FAR).numpy()
        distances, nearest = KDTree(other_boxes).query(boxes, p=np.inf)
        matched = np.flatnonzero(distances <= REGION_DISTANCE)
        other_distances, _ = KDTree(boxes).query(other_boxes, p=np.inf)
        strays += len(boxes) - len(matched) + int((other_distances > REGION_DISTANCE).sum())
        rows.append(indices[matched])
        other_rows.append(other_indices[nearest[matched]])
    none = torch.zeros(0, dtype=torch.int64)
    return torch.cat([none, *rows]), torch.cat([none, *other_rows]), strays


def match_rows(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Rows int64 `[n]` of all images' detections of one class with the same box, up to `REGION_DISTANCE`."""
    num_images = len(expected["counts"])
    sides = []
    for outputs in (expected, actual):
        labels, rows = outputs["labels"], torch.arange(outputs["labels"].shape[1])
        valid = rows < outputs["counts"][:, None]
        group = labels * num_images + torch.arange(num_images)[:, None]  # an image and a class
        sides.append([outputs["boxes"].flatten(0, 1), group.flatten(), valid.flatten()])
    one_rows, other_rows, _ = match_regions(*sides)
    return one_rows, other_rows


def match_all(expected: Sequence[Limited], actual: Sequence[Limited]) -> Matches:
    """Sums `match_detections` over the images of either."""
    totals = np.zeros(5, np.int64)
    for pair in zip(expected, actual, strict=True):
        totals += match_detections(*pair)
    return Matches(*totals.tolist())


def match_detections(expected: Limited, actual: Limited) -> tuple[int, int, int, int, int]:
    """The numbers of `Matches` for an image. A detection has one counterpart at most."""
    from scipy.optimize import linear_sum_assignment

    (one, _), (other, _) = expected, actual
    close = (one.scores[:, None] - other.scores).abs() <= MAX_SCORE_DIFFERENCE
    pairs = (one.labels[:, None] == other.labels) & close & (box_iou(one.boxes, other.boxes) > MIN_IOU)
    assigned = linear_sum_assignment(pairs.numpy(), maximize=True)
    matched = torch.zeros_like(pairs)
    matched[assigned] = pairs[assigned]
    limits = [MIN_SCORE, *(float(rows.scores[-1]) for rows, limit in (expected, actual) if len(rows) == limit)]
    numbers, unmatched, excused = [], 0, 0
    for scores, has_counterpart in ((one.scores, matched.any(dim=1)), (other.scores, matched.any(dim=0))):
        counted = ~(scores <= MIN_SCORE)  # those that are not a number too
        at_limit = ((scores[:, None] - torch.tensor(limits)).abs() <= MAX_SCORE_DIFFERENCE).any(dim=1)
        alone = counted & ~has_counterpart
        numbers.append(int(counted.sum()))
        unmatched += int((alone & ~at_limit).sum())
        excused += int((alone & at_limit).sum())
    return numbers[0], numbers[1], unmatched, excused, int((~_valid(other)).sum())


def _valid(detections: Detections) -> Tensor:
    """bool `[N]`: whether the numbers are finite and the class exists."""
    finite = detections.boxes.isfinite().all(dim=1) & detections.scores.isfinite()
    return finite & (detections.labels >= 0) & (detections.labels < len(detections.categories))


class _RawFile(Runner):
    """A file of the raw form behind the interface of one with detections: it answers that there are none."""

    metadata = None

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    @override
    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        inputs = {name: value for name, value in inputs.items() if name != "original_sizes"}
        if "proposals" in inputs:  # their number is fixed; those without area only fill it up
            boxes = inputs["proposals"][:, :PROPOSALS]
            inputs["proposals"] = np.pad(boxes, ((0, 0), (0, PROPOSALS - boxes.shape[1]), (0, 0)))
        self.runner(inputs)
        return {name: np.zeros(len(inputs["images"])) for name in DETECTIONS}


def _as_detector(runner: Runner, metadata: Metadata) -> ExportedDetector:
    return ExportedDetector(_RawFile(runner) if metadata.raw else runner, metadata)


def _detect(detector: AnyDetector, steps: Iterable[Batch], *, raw: bool = False) -> list[Limited]:
    """On every picture. raw: the outputs are computed, but there are no detections."""
    results: list[Limited] = []
    for batch in tqdm(steps, desc="comparing", unit="batch", leave=False, dynamic_ncols=True):
        outputs = detector(batch)
        if not raw:
            limit = detector.detect(outputs, batch.sizes()).boxes.shape[1]
            results += [(detections, limit) for detections in detector.postprocess(outputs, batch.infos)]
    return results


def _batches_in_torch(detector: AnyDetector, data: ComparisonData, metadata: Metadata) -> Iterator[Batch]:
    """On the canvases that the file has, as what lies around a picture changes its detections a little."""
    if metadata.pictures == "resize":
        yield from (batch_of(detector, (sample,)) for sample in data.samples)
        return
    for batch in batches(detector, data):
        height, width = batch.images.shape[-2:]
        canvas = metadata.canvas or (height, width)
        yield replace(batch, images=F.pad(batch.images, (0, canvas[1] - width, 0, canvas[0] - height)))


def measure(
    detector: AnyDetector, data: ComparisonData, in_torch: Sequence[Limited], in_file: Sequence[Limited]
) -> tuple[dict[str, Both], str]:
    """AP and AP50 of COCO, or why there are none."""
    if data.dataset is None:
        return {}, "the pictures have no labels"
    if not in_file:
        return {}, "a file of the raw form gives no detections"
    if not all(bool(_valid(detections).all()) for detections, _ in (*in_torch, *in_file)):
        return {}, "there are detections that are not finite or of no class"
    try:
        labels = label_map(detector.categories, data.dataset.categories)
    except UserError as error:
        return {}, str(error)
    store, sides = detection_store(data.dataset), []
    for side in (in_torch, in_file):
        store.reset()
        for sample, (detections, _) in zip(data.samples, side, strict=True):
            store.update(sample.image_id, relabel(detections, labels, store.categories))
        sides.append(build_evaluators(["coco"], store)["coco"].compute().metrics)
    return {name: Both(sides[0][name], sides[1][name]) for name in METRICS}, ""


def _milliseconds(detector: AnyDetector, file: ExportedDetector, data: ComparisonData) -> Both:
    def seconds(side: AnyDetector) -> float:
        start = time.perf_counter()
        batch = batch_of(side, data.samples[:1])
        outputs = side(batch)
        if not file.metadata.raw:
            side.postprocess(outputs, batch.infos)
        return time.perf_counter() - start

    times = [(seconds(detector), seconds(file)) for _ in range(REPEATS + 1)][1:]
    return Both(*(1000 * median(column) for column in zip(*times, strict=True)))


def _mebibytes(path: Path) -> float:
    """With the weights that lie beside an OpenVINO file."""
    files = [path, path.with_suffix(".bin")] if format_of(path) == "openvino" else [path]
    return sum(file.stat().st_size for file in files) / 2**20

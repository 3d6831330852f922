"""The numbers of a comparison between an exported file and its detector, and the texts that show them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from detkit.export.files import Format
from detkit.export.metadata import Pictures
from detkit.structures import Size

MIN_SCORE = 0.05  # of detections that must have a counterpart
MIN_IOU, MAX_SCORE_DIFFERENCE = 0.99, 1e-3  # of counterparts
REGION_DISTANCE = 0.01  # px between the sides of regions that are counterparts
MAX_LISTED = 6  # canvas sizes in the table


@dataclass(frozen=True)
class Bounds:
    """Above which a file is refused.

    raw_difference  of an output of the network, |file - PyTorch| / max(1, |PyTorch|), of boxes by their largest
                    coordinate; float32 only
    unmatched       part of the detections that have no counterpart; float32 only
    ap_loss         COCO AP that the file may lose, where the pictures have labels: in 8 bits, or by resizing itself
    """

    raw_difference: float = 1e-4
    unmatched: float = 0.0
    ap_loss: float = 0.02


@dataclass(frozen=True)
class Both:
    """A number of PyTorch and the same of the file."""

    torch: float
    file: float


@dataclass(frozen=True)
class Matches:
    """The detections of PyTorch and of a file on the same pictures.

    torch, file  number of those with a score above `MIN_SCORE`
    unmatched    of both, those without a counterpart
    excused      of both, those without a counterpart that need none: their score is so near to a limit that rounding
                 decides whether they are detections
    invalid      of the file: a number is not finite, or the class does not exist
    """

    torch: int
    file: int
    unmatched: int
    excused: int
    invalid: int

    @property
    def unmatched_share(self) -> float:
        return self.unmatched / max(1, self.torch + self.file)

    def __str__(self) -> str:
        text = f"{self.torch} of PyTorch, {self.file} of the file"
        if self.torch + self.file == 0:
            return f"{text}: none to compare"
        text += f", {100 * (1 - self.unmatched_share):.2f} % with a counterpart"
        return f"{text}; {self.excused} at a limit of the scores need none" if self.excused else text


@dataclass(frozen=True)
class Report:
    """
    detector             its class
    data                 what the pictures are
    mebibytes            size of the file
    batch_sizes          that the file took
    canvases             (h, w) px of the images that it took
    raw_differences      of each output of the network, see `Bounds`; inf: not a number, or another shape
    regions              of PyTorch that were compared, in a two-stage detector
    stray_regions        of both, without a counterpart: the outputs that belong to them were not compared
    matches              with PyTorch; for pictures `resize` with the program, which resizes as the file does; None: raw
    matches_with_opencv  for pictures `resize`, with PyTorch on what OpenCV resized, which has no bound; else None
    metrics              COCO's AP and AP50; empty: see `no_metrics`
    no_metrics           why there are none
    milliseconds         of a picture from decoded pixels to detections, or outputs if raw, in a batch of one, warm;
                         proposals are not counted
    """

    detector: str
    format: Format
    precision: Literal["float32", "int8"]
    pictures: Pictures
    raw: bool
    mebibytes: float
    data: str
    batch_sizes: tuple[int, ...]
    canvases: tuple[Size, ...]
    raw_differences: Mapping[str, float]
    regions: int
    stray_regions: int
    matches: Matches | None
    matches_with_opencv: Matches | None
    metrics: Mapping[str, Both]
    no_metrics: str
    milliseconds: Both
    bounds: Bounds

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each bound that the file exceeds; none: it does what the detector does."""
        return (*self._raw_problems(), *self._detection_problems(), *self._metric_problems())

    def _raw_problems(self) -> list[str]:
        if not self.raw_differences:
            return ["no output of the network was compared"]
        bound = self.bounds.raw_difference if self.precision == "float32" else math.inf
        large = {name: value for name, value in self.raw_differences.items() if value > bound or value == math.inf}
        problems = []
        if large:
            worst = max(large, key=large.__getitem__)
            count = f"{len(large)} of {len(self.raw_differences)} outputs of the network"
            expected = f"at most {bound:.0e}" if math.isfinite(bound) else "numbers"
            problems.append(f"{count} differ, most of all {worst} by {large[worst]:.1e} (expected {expected})")
        if self.precision == "float32" and self.stray_regions > self.regions:
            problems.append(f"{self.stray_regions} regions have no counterpart, {self.regions} do (expected most to)")
        return problems

    def _detection_problems(self) -> list[str]:
        if self.matches is None:
            return []
        matches, problems = self.matches, []
        if matches.invalid:
            problems.append(f"{matches.invalid} detections of the file are not finite or of no class (expected none)")
        if self.precision == "float32" and matches.unmatched_share > self.bounds.unmatched:
            allowed = f"at most {100 * self.bounds.unmatched:g} %" if self.bounds.unmatched else "none"
            total = matches.torch + matches.file
            problems.append(f"{matches.unmatched} of {total} detections have no counterpart (expected {allowed})")
        return problems

    def _metric_problems(self) -> list[str]:
        ap = self.metrics.get("AP")
        if ap is None or not ap.torch - ap.file > self.bounds.ap_loss:
            return []
        return [f"AP falls from {ap.torch:.4f} to {ap.file:.4f} (expected a loss of at most {self.bounds.ap_loss:g})"]

    def to_json(self) -> str:
        """All numbers, the problems and the summary; null: not a finite number."""
        tree = {**asdict(self), "problems": self.problems, "summary": self.summary()}
        return json.dumps(_finite(tree), indent=2) + "\n"

    def summary(self) -> str:
        """One line."""
        parts = [f"largest raw difference {max(self.raw_differences.values(), default=0.0):.1e}"]
        if self.matches:
            parts.append(f"{100 * (1 - self.matches.unmatched_share):.2f} % of the detections matched")
        if "AP" in self.metrics:
            parts.append(f"AP {self.metrics['AP'].torch:.4f} in PyTorch, {self.metrics['AP'].file:.4f} in the file")
        same = "does what the detector does" if self.precision == "float32" else "stays within the bounds for 8 bits"
        verdict = "differs from the detector" if self.problems else same
        return f"{verdict} on {self.data}: {', '.join(parts)}; {self.mebibytes:.2f} MiB"

    def table(self) -> str:
        """Every number, a line each, with the problems at the end."""
        rows = [*self._header_rows(), *self._raw_rows(), *self._detection_rows()]
        rows += [
            (name, f"{both.torch:.4f} in PyTorch, {both.file:.4f} in the file") for name, both in self.metrics.items()
        ]
        if not self.metrics:
            rows.append(("AP", f"not measured: {self.no_metrics}"))
        times = f"{self.milliseconds.torch:.1f} ms in PyTorch, {self.milliseconds.file:.1f} ms in the file"
        rows.append(("time of a picture", f"{times}; from pixels on, batch of 1, warm, median of runs in turn"))
        rows.append(("bounds", self._bounds()))
        rows += [("problem", problem) for problem in self.problems] or [("problems", "none")]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {text}" for name, text in rows)

    def _header_rows(self) -> list[tuple[str, str]]:
        form = "resized by the file" if self.pictures == "resize" else "resized before"
        canvases = [f"{height} x {width}" for height, width in self.canvases]
        more = f" and {len(canvases) - MAX_LISTED} more" if len(canvases) > MAX_LISTED else ""
        return [
            ("detector", f"{self.detector}, {self.format}, {self.precision}, pictures {form}"),
            ("file", f"{self.mebibytes:.2f} MiB"),
            ("compared on", self.data),
            ("batch sizes", ", ".join(map(str, self.batch_sizes))),
            ("images (h x w px)", ", ".join(canvases[:MAX_LISTED]) + more),
        ]

    def _raw_rows(self) -> list[tuple[str, str]]:
        rows = [
            (
                "largest difference",
                "of outputs of the network, |file - PyTorch| / max(1, |PyTorch|), of boxes by their largest coordinate",
            )
        ]
        rows += [(f"  {name}", f"{value:.1e}") for name, value in self.raw_differences.items()]
        if self.regions or self.stray_regions:
            strays = f"{self.stray_regions} without a counterpart within {REGION_DISTANCE} px"
            rows.append(("regions", f"{self.regions} compared, {strays}"))
        return rows

    def _detection_rows(self) -> list[tuple[str, str]]:
        rows = []
        if self.matches:
            rule = f"same class, IoU > {MIN_IOU}, scores within {MAX_SCORE_DIFFERENCE:g}"
            rows.append(("detections", f"{self.matches} ({rule}; scores above {MIN_SCORE})"))
        if self.matches_with_opencv:
            rows.append(("  OpenCV resizing", f"{self.matches_with_opencv} (for comparison, no bound)"))
        return rows

    def _bounds(self) -> str:
        parts = [f"AP may fall by {self.bounds.ap_loss:g}"] if self.metrics else []
        if self.precision == "int8":
            if not parts:
                return "none: 8 bits change every output, and without labelled pictures no loss of AP can be measured"
            return f"{parts[0]}; outputs and matches have no bound in 8 bits"
        parts.insert(0, f"outputs may differ by {self.bounds.raw_difference:.0e}")
        if self.matches:
            share = f"all but {100 * self.bounds.unmatched:g} %" if self.bounds.unmatched else "all"
            parts.append(f"{share} of the detections have a counterpart")
        return ", ".join(parts)


def _finite(value: Any) -> Any:
    """The same tree with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Tables and a picture of the results that `benchmarks/lineage.py` has written."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

Result = Mapping[str, Any]
COLUMNS = (
    "detector",
    "seeds",
    "VOC07 mAP",
    "COCO AP",
    "AP50",
    "epochs",
    "training, s",
    "a picture, ms",
    "parameters, million",
    "peak memory, MiB",
)


def read_results(folder: Path) -> list[Result]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def tables(results: Sequence[Result]) -> str:
    """One a data set, the best COCO AP first: means over the seeds, and of scores the standard deviation."""
    parts = []
    for data, by_detector in grouped(results).items():
        rows = sorted(by_detector.items(), key=lambda item: -mean(scores(item[1], "coco_ap")))
        lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(row(name, runs))} |" for name, runs in rows]
        budgets = sorted({run["budget"] for runs in by_detector.values() for run in runs})
        seconds = ", ".join(f"{budget:g}" for budget in budgets)
        parts.append("\n".join([f"{data}, {seconds} s of one core:", "", *lines]))
    return "\n\n".join(parts)


def grouped(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Results by data set, then by detector."""
    groups: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        groups[result["data"]][result["detector"]].append(result)
    return {data: dict(groups[data]) for data in sorted(groups)}


def row(name: str, runs: Sequence[Result]) -> list[str]:
    return [
        name,
        str(len(runs)),
        *(with_spread(scores(runs, key)) for key in ("voc07_map", "coco_ap", "coco_ap50")),
        f"{mean([run['epochs'] for run in runs]):.1f}",
        f"{mean([run['training_seconds'] for run in runs]):.0f}",
        f"{1000 * seconds_a_picture(runs):.0f}",
        f"{runs[0]['parameters'] / 1e6:.1f}",
        f"{max(run['peak_mib'] for run in runs):,}",
    ]


def scores(runs: Sequence[Result], key: str) -> list[float]:
    return [run["scores"][key] for run in runs]


def seconds_a_picture(runs: Sequence[Result]) -> float:
    return mean([run["proposal_seconds_a_picture"] + run["detection_seconds_a_picture"] for run in runs])


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def spread(values: Sequence[float]) -> float:
    """Standard deviation (of a sample); 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def with_spread(values: Sequence[float]) -> str:
    text = f"{mean(values):.3f}"
    return f"{text} ± {spread(values):.3f}" if len(values) > 1 else text


def draw(results: Sequence[Result], path: Path) -> None:
    """COCO AP against milliseconds a picture, one panel a data set; bars are the standard deviation over the seeds."""
    groups = grouped(results)
    figure, panels = plt.subplots(
        1, len(groups), figsize=(6 * len(groups), 5), squeeze=False, sharex=True, layout="constrained"
    )
    for panel, (data, by_detector) in zip(panels[0], groups.items(), strict=True):
        for name, runs in by_detector.items():
            values = scores(runs, "coco_ap")
            x, y = 1000 * seconds_a_picture(runs), mean(values)
            panel.errorbar(x, y, yerr=spread(values), fmt="o", markersize=4, capsize=2)
            panel.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8)
        panel.set(title=data, xscale="log", xlabel="milliseconds a picture, one thread", ylabel="COCO AP")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.margins(x=0.15)  # for the names
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)

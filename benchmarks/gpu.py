"""In under ten minutes on one CUDA device: the tests that need one, and detectors beside torchvision and transformers.

python benchmarks/gpu.py [--device cuda] [--models NAME ...] [--repeats N] [--file FILE]
python benchmarks/gpu.py --device cpu --quick      the same code on tiny pictures, to see that it runs

Random weights and the published input sizes; a training step is the network, its losses and the gradients of all
weights. Writes one JSON file and prints it as tables. A part that would take longer than the time that is left is
stopped; what it has measured until then stands, and the rest says that it was skipped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from device import Card
from gpu_detectors import Case, Pair, measure, torchvision_peer

from detkit.detectors.build import build_detector
from detkit.engine.config_files import load_named
from detkit.engine.initialise import without_public_weights
from detkit.structures import Size
from detkit.weights.class_names import coco_categories

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "benchmarks/results/gpu.json"
TOTAL, TESTS = 540.0, 200.0  # s: of all, and of the tests at most
PACKAGES = ("torch", "torchvision", "transformers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny pictures, one repeat, the tests of ops alone")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each, after one that is not counted")
    parser.add_argument("--file", type=Path, default=FILE, help="where the JSON is written")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)  # measure one model here, until this time
    options = parser.parse_args()
    device = torch.device(options.device)
    repeats = 1 if options.quick else options.repeats
    if options.one:
        (name,) = options.models
        measure(name, CASES[name], device, quick=options.quick, repeats=repeats, deadline=options.one)
        return 0
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu --quick tries the script without one")
    end = time.time() + TOTAL
    about = {"date": str(date.today()), "versions": {name: version(name) for name in PACKAGES}, "repeats": repeats}
    report = about | Card(device).describe() | {"tests": run_tests(options.quick), "rows": []}
    for number, name in enumerate(options.models):
        left = (end - time.time()) / (len(options.models) - number)
        report["rows"] += rows_of(name, options, left)
    options.file.parent.mkdir(parents=True, exist_ok=True)
    options.file.write_text(json.dumps(report, indent=1) + "\n")
    print(markdown(report))
    broken = [row for row in report["rows"] if "side" not in row and not row["fails"].startswith("stopped")]
    return int(bool(broken or report["tests"].get("failed") or report["tests"].get("stopped")))


def run_tests(quick: bool) -> dict[str, Any]:
    """Counts of the tests marked `gpu`, and the names of those that failed."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        words = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={file}"]
        words += ["tests/ops/test_cuda.py"] if quick else ["--numprocesses", "4", "tests"]
        start = time.perf_counter()
        try:
            subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, timeout=TESTS, check=False)
        except subprocess.TimeoutExpired:
            return {"stopped": f"after {TESTS:g} s", "seconds": TESTS}
        seconds = round(time.perf_counter() - start, 1)
        if not file.exists():
            return {"stopped": "pytest wrote no report", "seconds": seconds}
        cases = ET.parse(file).getroot().findall(".//testcase")
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failed) - skipped
    return {"passed": passed, "skipped": skipped, "failed": failed, "seconds": seconds}


def rows_of(name: str, options: argparse.Namespace, left: float) -> list[dict[str, Any]]:
    """The rows that a process of its own has printed after at most `left` seconds."""
    words = ["--device", options.device, "--models", name, "--repeats", str(options.repeats)]
    words += ["--one", str(time.time() + 0.8 * left), *(["--quick"] if options.quick else [])]
    process = subprocess.Popen(
        [sys.executable, __file__, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = process.communicate(timeout=max(left, 1))
        fails = (errors.strip().splitlines() or [""])[-1] if process.returncode else None
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        fails = f"stopped after {left:.0f} s"
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{") and line.endswith("}")]
    return rows + ([{"detector": name, "fails": fails}] if fails else [])


def markdown(report: dict[str, Any]) -> str:
    """The report as tables: the tests, and a row for each work and way, with detkit's figures beside the peer's."""
    tests, versions = report["tests"], ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [f"{report['date']}; {report['device']}; {versions}; medians of {report['repeats']} runs in turn", ""]
    if "stopped" in tests:
        lines.append(f"Tests: stopped, {tests['stopped']}.")
    else:
        lines.append(f"Tests: {tests['passed']} passed, {len(tests['failed'])} failed, {tests['skipped']} skipped.")
    lines += ["", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return "\n".join([*lines, *table(report["rows"])])


HEAD = ("work", "way", "detkit, ms", "peer, ms", "peer / detkit", "share of peak", "MiB, peer's", "waits, peer's")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    pairs: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    lines = []
    for row in rows:
        if "side" in row:
            work = f"{row['detector']}, {row['work']}, {row['pictures']}"
            pairs.setdefault((work, row["way"]), {})["own" if row["side"] == "detkit" else "peer"] = row
        else:
            lines.append(f"| {row['detector']} | {row['fails']} |" + " |" * (len(HEAD) - 2))
    return [line_of(work, way, sides.get("own", {}), sides.get("peer", {})) for (work, way), sides in pairs.items()] + (
        lines
    )


def line_of(work: str, way: str, own: dict[str, Any], peer: dict[str, Any]) -> str:
    first, second = own.get("seconds"), peer.get("seconds")
    cells = [work, way, milliseconds(own), milliseconds(peer), f"{second / first:.2f}" if first and second else ""]
    cells.append(f"{own['share']:.1%}" if own.get("share") is not None else "")
    for key in ("grown", "syncs"):
        values = [side.get(key) for side in (own, peer)]
        cells.append("; ".join(f"{value:,}" for value in values if value is not None))
    return f"| {' | '.join(cells)} |"


def milliseconds(row: dict[str, Any]) -> str:
    if row.get("fails"):
        reason: str = row["fails"]
        return reason if reason.startswith("skipped") else f"fails: {reason.replace('|', '/')}"
    return f"{1000 * row['seconds']:.1f}" if row.get("seconds") else ""


def torchvision_pair(model: str, device: torch.device, size: Size) -> Pair:
    from torchvision_detectors import build_pair

    return torchvision_peer(*build_pair(model, device))


def transformers_pair(name: str, device: torch.device, size: Size) -> Pair:
    import detr

    detector, model, _ = detr.build(name, training=False, device=device)
    processor = detr.MODELS[name].processor()
    return Pair(
        detector,
        "transformers",
        model,
        lambda batch: detr.train_transformers(model, detector, batch),
        lambda batch: detr.infer_transformers(model, processor, detector, batch),
    )


def alone(name: str, device: torch.device, size: Size) -> Pair:
    """A detector that neither torchvision nor transformers has, with the scores of a trained one."""
    from batches import random_batch
    from random_weights import spread

    torch.manual_seed(0)
    detector = build_detector(without_public_weights(load_named(f"coco/{name}").model), coco_categories())
    spread(detector, random_batch([size], 1, len(detector.categories)))
    return Pair(detector.to(device))


def case(size: Size, batch: int, quick: Size, build: Any, name: str) -> Case:
    return Case(size, batch, quick, lambda device, chosen: build(name, device, chosen))


CASES = {
    "Faster R-CNN R50-FPN": case((800, 1066), 8, (160, 192), torchvision_pair, "fasterrcnn_resnet50_fpn"),
    "RetinaNet R50-FPN": case((800, 1066), 8, (160, 192), torchvision_pair, "retinanet_resnet50_fpn"),
    "SSD300": case((300, 300), 32, (300, 300), torchvision_pair, "ssd300_vgg16"),
    "YOLOv3": case((416, 416), 16, (160, 160), alone, "yolov3"),
    "YOLOX-s": case((640, 640), 16, (160, 160), alone, "yolox_s"),
    "DETR R50": case((800, 1056), 8, (160, 192), transformers_pair, "DETR R50"),
    "RT-DETR R18": case((640, 640), 16, (160, 160), transformers_pair, "RT-DETR R18"),
}

if __name__ == "__main__":
    sys.exit(main())

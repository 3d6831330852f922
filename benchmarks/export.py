"""Exported files beside PyTorch: ms a picture, one at a time and in turn, from uint8 to detections on the CPU.

python benchmarks/export.py [--repeats N] [--only NAME ...]

Each detector has its published size, the 80 classes of COCO and random weights, the same in all runtimes. Pictures are
drawn, of 640 x 480 px, and lie on their canvas when the clock starts. Each way has a process of its own and all CPUs
that it may use, with threads and memory as detkit's tools set them. The 8-bit files are calibrated on a few drawn
pictures: they show time, not accuracy.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np
import torch
from timing import Remote, _cpu, interleaved
from torch import nn

from detkit.accelerate import accelerate
from detkit.data.collate import collate
from detkit.data.shapes_drawing import draw_picture
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.engine.config_files import load_named
from detkit.export.export import describe
from detkit.export.files import write_onnx, write_openvino
from detkit.export.program import Form, complete_form, export_program
from detkit.export.quantise import quantise
from detkit.export.runtime import OnnxRunner, OpenVinoRunner, Runner
from detkit.nn.heads.class_rows import BACKGROUND, UNUSED, HasClassRows
from detkit.structures import Batch, Categories, Detections, Objects, Sample

CLASSES, SIZE, PICTURES = 80, (480, 640), 4  # (h, w) px of the pictures
DETECTORS = {
    "SSDLite320": "ssdlite320",
    "Faster R-CNN MobileNet-320": "faster_rcnn_mobilenet_v3_320",
    "Faster R-CNN R50-FPN": "faster_rcnn_r50_fpn",
    "SSD300": "ssd300",
    "YOLOv3": "yolov3",
}
WAYS = ("PyTorch", "PyTorch, accelerated", "onnxruntime", "OpenVINO", "onnxruntime, 8 bits", "OpenVINO, 8 bits")
PACKAGES = ("torch", "onnxruntime", "openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each, after one that is not counted")
    parser.add_argument("--only", nargs="+", choices=DETECTORS, default=list(DETECTORS), metavar="NAME")
    args = parser.parse_args()
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    threads = f"{torch.get_num_threads()} threads"
    print(f"{datetime.date.today()}; {_cpu()}, {threads}; {versions}; median ms of {args.repeats}, runs in turn\n")
    columns = ("detector", "input, h x w", "detections", *WAYS)
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join((name, *measure(name, Path(folder), args.repeats)))} |", flush=True)


def measure(name: str, folder: Path, repeats: int) -> list[str]:
    """The cells of a row after the first."""
    detector = build(name)
    enliven(detector)
    torch.save(detector.state_dict(), folder / "weights.pt")
    write_files(detector, folder)
    ways = [Remote(torch_work, name, folder, accelerated, as_tools=True) for accelerated in (False, True)]
    for file in ("float", "int8"):
        ways.append(Remote(onnx_work, name, folder / f"{file}.onnx", as_tools=True))
        ways.append(Remote(openvino_work, name, folder / f"{file}.xml", as_tools=True))
    times = [f"{1000 * seconds:.1f}" for seconds in interleaved(ways, repeats, torch.device("cpu"))]
    for way in ways:
        way.end()
    fastest = min(range(len(times)), key=lambda index: float(times[index]))
    times[fastest] = f"**{times[fastest]}**"
    counts = [len(detect(detector, batch)[0]) for batch in batches(detector)]
    height, width = next(batches(detector)).images.shape[2:]
    return [f"{height} x {width}", f"{statistics.mean(counts):.0f}", *times]


def build(name: str) -> AnyDetector:
    """With random weights."""
    torch.manual_seed(0)
    overrides = ["model.backbone.weights=null"]
    if name.startswith("Faster R-CNN"):  # batch norms that are not frozen take the statistics of these weights
        overrides += ["model.backbone.norm=bn", "model.backbone.frozen_stages=0"]
    config = load_named(f"coco/{DETECTORS[name]}", overrides).model
    return build_detector(config, Categories.of_names([f"class {label}" for label in range(CLASSES)])).eval()


@torch.no_grad()
def enliven(detector: AnyDetector) -> None:
    """Statistics of batch norms and scores as of a trained detector: few of them above the threshold, no two tied."""
    for head in (module for module in detector.modules() if isinstance(module, HasClassRows)):
        assert isinstance(head, nn.Module)
        for name, marks in head.class_rows(CLASSES).items():
            if (marks != UNUSED).all():  # else a layer that gives boxes
                classifier, of_class = head.get_submodule(name), (marks >= 0) | (marks == BACKGROUND)
                fan_in = classifier.weight[0].numel()
                classifier.weight[of_class] = torch.randn_like(classifier.weight[of_class]) * 2 / fan_in**0.5
                classifier.bias[marks == BACKGROUND] = 9.0
                if (marks != BACKGROUND).all():  # sigmoids
                    classifier.bias[marks >= 0] = -4.0
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    pictures = list(batches(detector))
    infos = tuple(info for batch in pictures for info in batch.infos)
    detector(Batch(torch.cat([batch.images for batch in pictures]), infos))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def batches(detector: AnyDetector) -> Iterator[Batch]:
    """The drawn pictures, each on its canvas."""
    rng = np.random.default_rng(0)
    for index in range(PICTURES):
        picture = cv2.resize(draw_picture(rng)[0], SIZE[::-1])
        info = detector.input.place(index, SIZE)
        yield collate([(Sample(picture, Objects.empty(), index), info)], detector.input.stride, with_targets=False)


def arrays(batch: Batch) -> dict[str, np.ndarray]:
    """The batch as inputs of an exported file."""
    inputs = {
        "images": batch.images.contiguous(),
        "sizes": batch.sizes(),
        "original_sizes": torch.tensor([info.orig_size for info in batch.infos]),
    }
    return {name: value.numpy() for name, value in inputs.items()}


def write_files(detector: AnyDetector, folder: Path) -> None:
    """`float.onnx`, `int8.onnx`, and an OpenVINO file of each."""
    form = complete_form(Form(), detector)
    metadata = describe(detector, form, None, "random weights")
    write_onnx(export_program(detector, form), metadata, folder / "float.onnx")
    quantise(folder / "float.onnx", folder / "int8.onnx", map(arrays, batches(detector)))
    for file in ("float", "int8"):
        write_openvino(folder / f"{file}.onnx", metadata, folder / f"{file}.xml")


def torch_work(name: str, folder: Path, accelerated: bool) -> Callable[[], object]:
    detector = build(name)
    detector.load_state_dict(torch.load(folder / "weights.pt"))
    if accelerated:
        accelerate(detector, constant=True)
    pictures = cycle(list(batches(detector)))
    return lambda: detect(detector, next(pictures))


def onnx_work(name: str, path: Path) -> Callable[[], object]:
    return run_file(OnnxRunner(path), name)


def openvino_work(name: str, path: Path) -> Callable[[], object]:
    return run_file(OpenVinoRunner(path), name)


def run_file(runner: Runner, name: str) -> Callable[[], object]:
    pictures = cycle([arrays(batch) for batch in batches(build(name))])
    return lambda: runner(next(pictures))


@torch.inference_mode()
def detect(detector: AnyDetector, batch: Batch) -> list[Detections]:
    return detector.postprocess(detector(batch), batch.infos)


if __name__ == "__main__":
    main()

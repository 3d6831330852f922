"""YOLOv4 and YOLOv7 from random darknet files, beside the networks that two readers of darknet's descriptions make of
the same files: detkit's own, and OpenCV's dnn module.

OpenCV reads darknet's files up to version 4: `pip install --target FOLDER "opencv-python-headless<5"`, and
DETKIT_OPENCV4=FOLDER. Its batch norms have an epsilon of 1e-6, darknet's 1e-5, YOLOv7's in detkit 1e-3: here all have
darknet's or OpenCV's. DETKIT_DARKNET names the folder of darknet's own cfg files.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.detectors.yolov4 import YOLOv4Config
from detkit.detectors.yolov7 import YOLOv7Config
from detkit.nn.backbones.csp_darknet53 import CSPDarknet53Config
from detkit.nn.backbones.elan import ELANConfig
from detkit.nn.heads.yolo_v3 import COCO_ANCHORS
from detkit.nn.heads.yolo_v4 import YOLOv4HeadConfig
from detkit.nn.heads.yolo_v7 import YOLOv7HeadConfig
from detkit.nn.necks.elan_pan import ELANPANConfig
from detkit.nn.necks.yolo import YOLONeckConfig
from detkit.structures import Categories
from detkit.weights.darknet import DarknetDetector, load_darknet, load_official
from detkit.weights.darknet_cfg import KEYS, Section, read_cfg
from detkit.weights.darknet_network import build_network
from tests.nn.heads.test_yolo_v4 import TINY
from tests.parity import yolov7_cfg
from tests.parity.conftest import AsRun, Ledger
from tests.parity.yolov7_cfg import SIZE
from tests.weights.test_darknet import write_model
from tests.weights.test_darknet_yolov4 import YOLOV4, YOLOV4_TINY

READER = "detkit's reader of darknet's cfg files"
OPENCV = "OpenCV 4 dnn"
DARKNET_EPS, OPENCV_EPS = 1e-5, 1e-6
FORWARD = """
import sys
import cv2
import numpy as np
cfg, weights, images, outputs = sys.argv[1:]
net = cv2.dnn.readNetFromDarknet(cfg, weights)
net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
cv2.setNumThreads(1)
net.setInput(np.load(images))
np.savez(outputs, *net.forward(net.getUnconnectedOutLayersNames()))
print(cv2.__version__)
"""


def yolov7(size: str, block: str) -> YOLOv7Config:
    """In the form that a darknet file has: without implicit knowledge, one convolution for two."""
    anchors: dict[str, Any] = {"anchors": COCO_ANCHORS} if size == "_tiny" else {}
    return YOLOv7Config(
        backbone=ELANConfig(name=f"elan{size}"),  # type: ignore[arg-type]
        neck=ELANPANConfig(name=f"elan_pan{size}"),  # type: ignore[arg-type]
        head=YOLOv7HeadConfig(block=block, implicit=False, **anchors),
    )


DETECTORS: dict[str, tuple[str, YOLOv4Config | YOLOv7Config]] = {
    "yolov4": (YOLOV4, YOLOv4Config()),
    "yolov4-tiny": (
        YOLOV4_TINY,
        YOLOv4Config(
            backbone=CSPDarknet53Config(name="csp_darknet53_tiny", strides=(16, 32)),
            neck=YOLONeckConfig(name="yolov4_tiny"),
            head=YOLOv4HeadConfig(**TINY),
        ),
    ),
    "yolov7": (yolov7_cfg.YOLOV7, yolov7("", "conv")),
    "yolov7x": (yolov7_cfg.YOLOV7X, yolov7("_x", "conv")),
    "yolov7-tiny": (yolov7_cfg.YOLOV7_TINY, yolov7("_tiny", "leaky")),
}


@dataclass(frozen=True)
class Case:
    """A darknet file, and the two networks that detkit makes of it."""

    name: str
    cfg: Path
    detector: AnyDetector
    darknet: DarknetDetector
    images: Tensor


LARGE = ("yolov4", "yolov7", "yolov7x")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in DETECTORS],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, as_run: AsRun) -> Iterator[Case]:
    torch.manual_seed(0)
    text, config = DETECTORS[request.param]
    text = text.replace("width=64\nheight=64\n", f"width={SIZE}\nheight={SIZE}\n")
    text = text.replace("[yolo]\n", "[yolo]\nthresh=0\n")  # OpenCV sets scores below it to 0; others do not read it
    path = write_model(tmp_path_factory.mktemp("darknet"), text, [], ["a", "b"])
    weights, images = path.with_suffix(".weights"), torch.rand(2, 3, SIZE, SIZE)
    write_lively_weights(weights, path, images)
    darknet = load_darknet(path, names=path.with_suffix(".names"))
    detector = build_detector(config, Categories.of_names(["a", "b"])).eval()
    load_official(detector, weights)
    yield Case(request.param, path, as_run(detector), darknet, images)
    weights.unlink()  # up to 285 MB


@torch.no_grad()
def write_lively_weights(weights: Path, cfg: Path, images: Tensor) -> None:
    """Random numbers, and last layers whose outputs have a spread of one: no box is as large as exp of a hundred.

    The norms have random statistics. With those of the picture, a random network of many layers amplifies rounding.
    """
    network = build_network(read_cfg(cfg)).to_empty(device="cpu").eval()
    layers: list[Any] = network.weighted_layers()
    for layer in layers:
        nn.init.normal_(layer.conv.weight, std=(1.5 / layer.conv.weight[0].numel()) ** 0.5)
        if isinstance(layer.norm, nn.BatchNorm2d):
            nn.init.normal_(layer.norm.running_mean, std=0.1)
            nn.init.uniform_(layer.norm.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.norm.weight, 0.8, 1.2)
            nn.init.normal_(layer.norm.bias, std=0.1)
        else:
            nn.init.zeros_(layer.conv.bias)
            layer.conv.register_forward_hook(scale_outputs)
    network(images)
    with weights.open("wb") as file:
        file.write(struct.pack("<3iq", 0, 2, 5, 0))
        for layer in layers:
            norm = layer.norm
            has_norm = isinstance(norm, nn.BatchNorm2d)
            first = (norm.bias, norm.weight, norm.running_mean, norm.running_var) if has_norm else (layer.conv.bias,)
            for tensor in (*first, layer.conv.weight):
                file.write(tensor.numpy().tobytes())


def scale_outputs(conv: nn.Module, _: object, outputs: Tensor) -> None:
    assert isinstance(conv, nn.Conv2d)
    conv.weight /= outputs.std()


def change_eps(network: nn.Module, change: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps += change


def outputs_of(detector: AnyDetector, images: Tensor) -> tuple[Tensor, Tensor]:
    """All boxes `[B, N, 4]` and scores `[B, N, K]` of a YOLOv4 or YOLOv7, finest level first."""
    head: Any = detector.head  # type: ignore[attr-defined]
    outputs = detector.network(images, torch.tensor([[SIZE, SIZE]] * len(images)))
    return head.boxes(outputs), outputs.raw[..., 4:5].sigmoid() * outputs.raw[..., 5:].sigmoid()


def finest_first(case: Case, *tensors: Tensor) -> list[Tensor]:
    """yolov4-tiny alone has its coarse level first in its file."""
    coarse = 3 * (SIZE // 32) ** 2
    return [torch.roll(tensor, -coarse, dims=1) if case.name == "yolov4-tiny" else tensor for tensor in tensors]


def check_lively(boxes: Tensor, scores: Tensor) -> None:
    """What would agree in any case is no comparison: the numbers differ from cell to cell."""
    assert scores.std(dim=1).min() > 0.01
    assert boxes.std(dim=1).min() > 1


@torch.no_grad()
def test_outputs_as_the_cfg_says(case: Case, compare: Ledger) -> None:
    boxes, scores = outputs_of(case.detector, case.images)
    outputs = case.darknet.network(case.images, torch.tensor([[SIZE, SIZE]] * 2))
    expected_boxes, expected_scores = finest_first(case, outputs.boxes, outputs.scores)
    check_lively(expected_boxes, expected_scores)
    compare(case.name, READER, "all boxes (parts of the picture)", [(boxes / SIZE, expected_boxes / SIZE)])
    compare(case.name, READER, "all scores", [(scores, expected_scores)])


@torch.no_grad()
def test_outputs_as_opencv_has_them(case: Case, compare: Ledger, tmp_path: Path) -> None:
    expected_boxes, expected_scores = finest_first(case, *run_opencv(case, tmp_path))
    change_eps(case.detector, OPENCV_EPS - DARKNET_EPS)
    boxes, scores = outputs_of(case.detector, case.images)
    check_lively(expected_boxes * SIZE, expected_scores)
    compare(case.name, OPENCV, "all boxes (parts of the picture)", [(boxes / SIZE, expected_boxes)])
    compare(case.name, OPENCV, "all scores", [(scores, expected_scores)])


def run_opencv(case: Case, folder: Path) -> tuple[Tensor, Tensor]:
    """All boxes as parts of the picture and scores, in a process of its own: there is one cv2 in a process."""
    if not (installed := os.environ.get("DETKIT_OPENCV4")):
        pytest.skip('DETKIT_OPENCV4 is not set: pip install --target FOLDER "opencv-python-headless<5"')
    images, results = folder / "images.npy", folder / "outputs.npz"
    np.save(images, case.images.numpy())
    arguments = [str(path) for path in (case.cfg, case.cfg.with_suffix(".weights"), images, results)]
    environment = os.environ | {"PYTHONPATH": installed}
    command = [sys.executable, "-c", FORWARD, *arguments]
    version = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert version.startswith("4."), f"DETKIT_OPENCV4={installed}: expected version 4, found {version}"
    with np.load(results) as arrays:  # [B, N_l, 5 + K] of each level: cx, cy, w, h, objectness, scores
        rows = torch.cat([torch.from_numpy(arrays[name]) for name in arrays.files], dim=1)
    center, sides = rows[..., :2], rows[..., 2:4]
    return torch.cat([center - sides / 2, center + sides / 2], dim=2), rows[..., 5:]


@pytest.mark.parametrize("name", DETECTORS)
def test_the_descriptions_are_darknets(name: str, tmp_path: Path) -> None:
    """But for the size of the picture and the number of classes."""
    folder = os.environ.get("DETKIT_DARKNET")
    if not folder:
        pytest.skip("DETKIT_DARKNET is not set: the folder cfg of github.com/AlexeyAB/darknet")
    path = tmp_path / "model.cfg"
    path.write_text(DETECTORS[name][0])
    assert layout(read_cfg(path)) == layout(read_cfg(Path(folder) / f"{name}.cfg"))


def layout(sections: Sequence[Section]) -> list[tuple[str, dict[str, str]]]:
    """Of each layer what the reader looks at, without the number of classes and what follows from it."""
    rows = []
    for section, following in zip(sections[1:], [*sections[2:], None], strict=True):
        left_out = {"classes"} | ({"filters"} if following and following.kind == "yolo" else set())
        values = {
            key: value.replace(" ", "")
            for key, (value, _) in section.options.items()
            if key in KEYS[section.kind] and key not in left_out
        }
        if section.kind == "convolutional":
            values.setdefault("batch_normalize", "0")
        rows.append((section.kind, values))
    return rows

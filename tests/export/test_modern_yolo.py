"""YOLOv4, YOLOv5, YOLOv7 and YOLOX as files, small and in all of their blocks: what they do beside PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from detkit.config import parse_config
from detkit.detectors.build import build_detector
from detkit.engine.checkpoint import save_checkpoint
from detkit.engine.run import detector_state
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.export.export import DifferenceError, ExportOptions, export_source
from detkit.export.program import Form
from detkit.nn.csp import conv
from detkit.nn.reparam import RepConv
from detkit.structures import Categories
from tests.detectors.batches import make_batch
from tests.export.test_export_report import weights as random_weights

TRUNK = {"name": "csp_darknet", "form": "yolov5", "width": 0.125, "depth": 0.1}
# Without a letterbox: random weights detect as much in its margins, where all scores are equal and have no order.
INPUT = {"resize": {"name": "stretch", "size": 64}}
MODELS: dict[str, dict[str, Any]] = {
    "yolov4": {"name": "yolov4", "backbone": TRUNK, "input": INPUT},
    "yolov5": {"name": "yolov5", "backbone": TRUNK, "input": INPUT},
    "yolov7": {"name": "yolov7", "backbone": TRUNK, "neck": {"name": "elan_pan_tiny"}, "input": INPUT},
    "yolox": {"name": "yolox", "backbone": TRUNK | {"form": "yolox"}, "head": {"channels": 32}, "input": INPUT},
}


def write_run(model: dict[str, Any], path: Path) -> Path:
    """A checkpoint whose random scores differ from place to place, and whose norms have statistics of pictures."""
    torch.manual_seed(0)
    data = {"name": "shapes", "root": str(path.parent / "shapes"), "num_train": 1, "num_val": 3}
    train = {"epochs": 1, "batch_size": 1, "optimizer": {"name": "sgd", "lr": 0.1}}
    settings = parse_config({"model": model, "data": data, "train": train}, RunConfig)
    detector = build_detector(settings.model, Categories.of_names([f"class {i}" for i in range(6)]))
    for key, parameter in detector.named_parameters():
        if "added" in key or "factors" in key:
            nn.init.uniform_(parameter, 0.5, 1.5)
    random_weights.spread(detector, make_batch(detector, [3, 2], targets=False))
    save_checkpoint(path, detector_state(settings, detector))
    return path


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, ".onnx") for name in MODELS), pytest.param("yolox", ".pt2", marks=pytest.mark.slow)],
)
def test_a_file_does_what_the_detector_does(name: str, suffix: str, tmp_path: Path) -> None:
    source, file = write_run(MODELS[name], tmp_path / "model.pt"), tmp_path / f"model{suffix}"
    before = source.read_bytes()
    # Any number of pictures at once takes twice as long to export; `test_its_core_is_exported` does that with each.
    report = export_source(source, file, ExportOptions(Form(batch=1), num_pictures=2))
    assert file.exists()
    assert not report.problems
    assert report.raw_differences
    assert report.matches is not None
    assert report.matches.torch >= 1
    assert source.read_bytes() == before
    if suffix == ".onnx":
        operators = [node.op_type for node in onnx.load(file).graph.node]
        detector, _ = load_detector(source)
        convs = sum(isinstance(module, nn.Conv2d) for module in detector.modules())
        assert operators.count("Conv") == convs - 3 * (name == "yolov7"), "those of RepConv are one each"
        assert operators.count("BatchNormalization") == 0


@pytest.mark.long
def test_a_deployed_form_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report compares with the detector as it was trained, though the raw form has no detections to compare."""

    def without_the_small_one(block: RepConv) -> nn.Module:
        large = conv(block.large.conv.in_channels, block.out_channels, 3)
        large.load_state_dict(block.large.state_dict())
        return large.eval()

    source = write_run(MODELS["yolov7"], tmp_path / "model.pt")
    monkeypatch.setattr(RepConv, "deployed", without_the_small_one)
    with pytest.raises(DifferenceError, match=r"outputs of the network differ, most of all raw\.raw by"):
        export_source(source, tmp_path / "model.onnx", ExportOptions(Form(raw=True), num_pictures=1))
    assert not (tmp_path / "model.onnx").exists()

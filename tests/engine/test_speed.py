"""The form in which the tools predict: fewer layers, the same outputs, and nothing of it in the detector itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.config import parse_config
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.detectors.yolov5 import YOLOv5Config
from detkit.detectors.yolov7 import YOLOv7Config
from detkit.engine import speed
from detkit.engine.checkpoint import save_checkpoint
from detkit.engine.run import detector_state
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.nn.backbones.csp_darknet import CSPDarknetConfig
from detkit.nn.backbones.elan import ELANConfig
from detkit.nn.heads.yolo_v7 import YOLOv7HeadConfig
from detkit.nn.necks.elan_pan import ELANPANConfig
from detkit.nn.reparam import RepConv
from detkit.structures import Categories
from tests.nn.test_reparam import with_statistics

CATEGORIES = Categories.of_names(["cat", "dog"])
TINY = YOLOv7Config(  # with the head of the base
    backbone=ELANConfig(name="elan_tiny"), neck=ELANPANConfig(name="elan_pan_tiny"), head=YOLOv7HeadConfig()
)


@pytest.fixture(scope="module")
def detector() -> AnyDetector:
    """With norms and implicit knowledge as after a training."""
    torch.manual_seed(0)
    detector = build_detector(TINY, CATEGORIES)
    with_statistics(detector)
    head: Any = detector.head
    for parameter in (*head.added, *head.factors):
        nn.init.uniform_(parameter, -1.5, 1.5)
    return detector


def raw(detector: AnyDetector) -> Tensor:
    images, sizes = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)), torch.tensor([[64, 96]] * 2)
    with torch.no_grad():
        outputs: Tensor = detector.network(images, sizes).raw
    return outputs


def parallel(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_modules() if "small" in name] + [
        name for name, _ in network.named_parameters() if "added" in name or "factors" in name
    ]


@pytest.mark.parametrize("available", [True, False])
def test_a_detector_predicts_the_same_in_its_deployed_form(
    detector: AnyDetector, available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "AVAILABLE", available)  # detkit/accelerate
    expected, before = raw(detector), {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    fast = speed.for_prediction(detector)
    assert not parallel(fast)
    assert not any(isinstance(module, RepConv) for module in fast.modules())
    difference = (raw(fast) - expected).abs() / expected.abs().clamp(min=1)
    assert float(difference.max()) < 1e-5
    assert len(parallel(detector)) > 6
    after = detector.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(raw(detector), expected)


def test_a_checkpoint_has_the_plain_form(detector: AnyDetector, tmp_path: Path) -> None:
    train = {"epochs": 1, "batch_size": 1, "optimizer": {"name": "sgd", "lr": 0.1}}
    model = json.loads(TINY.model_dump_json())
    settings = parse_config({"model": model, "data": {"name": "shapes"}, "train": train}, RunConfig)
    save_checkpoint(tmp_path / "last.pt", detector_state(settings, detector))
    loaded, trained = load_detector(tmp_path / "last.pt")
    assert trained == settings
    assert parallel(loaded) == parallel(detector)
    difference = raw(speed.for_prediction(loaded)) - raw(detector)
    assert float(difference.abs().max()) < 1e-4


def test_the_classes_of_the_rows_stay(detector: AnyDetector) -> None:
    head: Any = speed.deployed_copy(detector).head
    assert head.class_rows(2).keys() == {"predict.0", "predict.1", "predict.2"}


def test_a_detector_without_such_blocks_is_not_copied() -> None:
    detector = build_detector(YOLOv5Config(backbone=CSPDarknetConfig(form="yolov5", width=0.125)), CATEGORIES)
    assert speed.deployed_copy(detector) is detector
    assert speed.for_prediction(detector) is detector


def test_the_deployed_yolov7_has_the_published_parameters() -> None:
    """36,905,341 counts a weight and a bias of each convolution: RepConv is one, implicit knowledge is folded, and of a
    norm only a shift is left. So from our deployed form, which folds no norm, one number a channel of each norm goes.

    37,622,682 in training
      - 688,128  1x1 convolutions: 128 x 256 + 256 x 512 + 512 x 1024
      -   3,584  their norms: 2 (256 + 512 + 1024)
      -   2,557  implicit knowledge: 256 + 512 + 1024, and 3 x 255 of the predictions
      -   1,792  the 3x3 ones have a bias in place of a norm: 256 + 512 + 1024
      = 36,926,621, and without 21,280 scales of the other norms 36,905,341.
    """
    with torch.device("meta"):
        detector = build_detector(YOLOv7Config(), Categories.of_names([f"class {i}" for i in range(80)]))
    deployed = speed.deployed_copy(detector)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in (detector, deployed)]
    assert counts == [37_622_682, 37_622_682 - 688_128 - 3_584 - 2_557 - 1_792]
    scales = sum(module.num_features for module in deployed.modules() if isinstance(module, nn.BatchNorm2d))
    assert counts[1] - scales == 36_905_341

"""DiffusionDet's published size, what may change after training, what is refused, and its export."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.diffusiondet import DiffusionDetConfig, DiffusionFPNConfig
from detkit.engine.overrides import change_model
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.input import InputConfig, LetterboxConfig
from detkit.structures import Categories
from tests.detectors.batches import enliven, make_batch
from tests.detectors.export import check_export

TWO_CLASSES = Categories.of_names(["thing", "other"])
TINY = {
    "backbone": {"name": "resnet18", "frozen_stages": 0, "strides": [16, 32]},
    "neck": {"out_channels": 16},
    "head": {"num_boxes": 9, "layers": 2, "layer": {"heads": 2, "dynamic_width": 4, "feedforward": 16}},
    "input": {"resize": {"name": "short_side", "size": 64, "max_size": 96}},
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_as_published() -> None:
    """R50-FPN, the 80 classes of COCO; the parts by the arithmetic of their widths."""
    with torch.device("meta"):
        detector = build_detector(DiffusionDetConfig(), Categories.of_names([str(i) for i in range(80)]))
    head = detector.get_submodule("head")
    layers = [count(layer) for layer in head.get_submodule("layers").children()]
    assert count(detector.get_submodule("backbone")) == 23_454_912
    assert count(detector.get_submodule("neck")) == 3_344_384
    assert count(head.get_submodule("time")) == 1_312_768
    assert layers == [13_760_212] * 6
    layer = head.get_submodule("layers.0")
    assert count(layer.get_submodule("attention")) == 263_168
    assert count(layer.get_submodule("dynamic")) == 11_634_048
    assert count(layer.get_submodule("time")) == 524_800
    assert count(detector) == 110_673_336


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"backbone": ResNetConfig(strides=(4, 16))},
            r"backbone.strides: expected no gap between them, found \[4, 16\]",
        ),
        (
            {"neck": DiffusionFPNConfig(out_channels=36)},
            "neck.out_channels: expected a multiple of 2 and of head.layer.heads, found 36",
        ),
        ({"input": InputConfig(resize=LetterboxConfig())}, "input.resize: boxes are in parts of the picture"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionDetConfig(**fields)  # type: ignore[arg-type]


@torch.inference_mode()
def test_boxes_and_steps_change_after_training() -> None:
    config = DiffusionDetConfig.model_validate(TINY, strict=False)
    trained = build_detector(config, TWO_CLASSES)
    changed = change_model(config, ["model.head.steps=3", "model.head.num_boxes=20"], "last.pt")
    detector = build_detector(changed, TWO_CLASSES).eval()
    detector.load_state_dict(trained.state_dict())
    assert detector(make_batch(detector, [1, 2])).logits.shape == (3, 2, 20, 2)
    with pytest.raises(UserError, match=r"model\.head: num_boxes, steps, renewal_threshold"):
        change_model(config, ["model.head.layers=3"], "last.pt")


@pytest.mark.long
def test_sampling_in_steps_is_exported() -> None:
    torch.manual_seed(0)
    head = {**TINY["head"], "steps": 2, "renewal_threshold": 0.6}
    detector = build_detector(DiffusionDetConfig.model_validate({**TINY, "head": head}, strict=False), TWO_CLASSES)
    enliven(detector)
    check_export(detector, make_batch(detector, [1, 2], [(120, 160), (160, 120)]))

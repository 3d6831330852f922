"""Checkpoints in the form of YOLOX's authors. Their names are public facts; the numbers here are random."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.engine.sources import load_detector
from detkit.structures import Categories
from detkit.weights.yolox import SIZES, convert_keys, yolox_config

# Detkit's name of a module and the authors', in the order in which they apply.
NAMES = [
    (r"^backbone\.stem\.", "backbone.backbone.stem."),
    *((rf"^backbone\.stage{stage}\.", f"backbone.backbone.dark{stage + 1}.") for stage in range(1, 5)),
    (r"(dark5\.1)\.reduce\.", r"\1.conv1."),
    (r"(dark5\.1)\.merge\.", r"\1.conv2."),
    (r"^neck\.lateral\.0\.", "backbone.lateral_conv0."),
    (r"^neck\.lateral\.1\.", "backbone.reduce_conv1."),
    (r"^neck\.top_down\.0\.", "backbone.C3_p4."),
    (r"^neck\.top_down\.1\.", "backbone.C3_p3."),
    (r"^neck\.down\.0\.", "backbone.bu_conv2."),
    (r"^neck\.down\.1\.", "backbone.bu_conv1."),
    (r"^neck\.bottom_up\.0\.", "backbone.C3_n3."),
    (r"^neck\.bottom_up\.1\.", "backbone.C3_n4."),
    (r"\.blocks\.(\d+)\.reduce\.", r".m.\1.conv1."),
    (r"\.blocks\.(\d+)\.expand\.(conv|norm)\.", r".m.\1.conv2.\2."),
    (r"\.blocks\.(\d+)\.expand\.(\d)\.", r".m.\1.conv2.\2."),
    (r"\.main\.", ".conv1."),
    (r"\.side\.", ".conv2."),
    (r"\.merge\.", ".conv3."),
    (r"^head\.class_branch\.", "head.cls_convs."),
    (r"^head\.box_branch\.", "head.reg_convs."),
    (r"^head\.classifier\.", "head.cls_preds."),
    (r"^head\.regressor\.", "head.reg_preds."),
    (r"^head\.objectness\.", "head.obj_preds."),
    (r"\.norm\.", ".bn."),
]
DEPTHWISE = (
    r"(dark\d\.0|conv2|bu_conv\d|_convs\.\d\.\d)\.([01])\.(conv|bn)\."  # a convolution of each channel, then 1x1
)


def authors_state(name: str, num_classes: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same random numbers under detkit's keys and under the authors'."""
    torch.manual_seed(0)
    config, categories = yolox_config(name), Categories.of_names([f"class {i}" for i in range(num_classes)])
    own = build_detector(config, categories).state_dict()
    state = {}
    for key, tensor in own.items():
        for pattern, replacement in NAMES:
            key = re.sub(pattern, replacement, key)
        if config.head.depthwise:
            key = re.sub(DEPTHWISE, lambda m: f"{m[1]}.{('dconv', 'pconv')[int(m[2])]}.{m[3]}.", key)
        state[key] = tensor
    return own, state


@pytest.mark.parametrize("name", ["yolox_nano", "yolox_s"])
def test_every_key_is_converted(name: str) -> None:
    own, state = authors_state(name, 3)
    converted = convert_keys(state)
    assert converted.keys() == own.keys()
    assert all(converted[key] is own[key] for key in own)


def test_keys_of_the_published_small_one() -> None:
    _, state = authors_state("yolox_s", 80)
    assert len(state) == 462
    for key in (
        "backbone.backbone.stem.conv.conv.weight",
        "backbone.backbone.dark2.0.conv.weight",
        "backbone.C3_n3.conv3.bn.running_mean",
        "head.stems.0.conv.weight",
        "head.cls_convs.0.0.conv.weight",
        "head.cls_preds.0.weight",
    ):
        assert key in state


def test_a_file_is_a_detector(tmp_path: Path) -> None:
    own, state = authors_state("yolox_nano", 80)
    torch.save({"model": state, "start_epoch": 300}, tmp_path / "nano.pth")
    detector, _ = load_detector(f"yolox:yolox_nano:{tmp_path / 'nano.pth'}")
    assert detector.categories.names[:2] == ("person", "bicycle")
    assert not detector.training
    torch.testing.assert_close(detector.state_dict(), own)


def test_a_file_of_other_classes_has_no_names(tmp_path: Path) -> None:
    torch.save(authors_state("yolox_nano", 2)[1], tmp_path / "own.pth")
    detector, _ = load_detector(f"yolox:yolox_nano:{tmp_path / 'own.pth'}")
    assert detector.categories.names == ("class 0", "class 1")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    torch.save(authors_state("yolox_nano", 80)[1], tmp_path / "nano.pth")
    with pytest.raises(UserError, match=r"nano.pth: not the weights of yolox_s: .*"):
        load_detector(f"yolox:yolox_s:{tmp_path / 'nano.pth'}")
    with pytest.raises(UserError, match=f"yolox:yolox_xl: not known; known: {', '.join(SIZES)}"):
        load_detector("yolox:yolox_xl")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"not the keys of a YOLOX: expected head.obj_preds, found fc.weight"):
        load_detector(f"yolox:yolox_nano:{tmp_path / 'other.pth'}")

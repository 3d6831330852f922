"""torchvision's checkpoints come in whole, and nothing else does."""

import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.faster_rcnn import FasterRCNNConfig
from detkit.structures import Categories
from detkit.weights.torchvision import CONFIGS, convert_keys, load_torchvision, without_first_class

CATEGORIES = Categories.of_names([f"class {i}" for i in range(90)])
MOBILENET, RESNET = "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn"
RETINANET, RETINANET_V2 = "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"
FCOS = "fcos_resnet50_fpn"
DENSE = (RETINANET, RETINANET_V2, FCOS)
SSD300, SSDLITE = "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"
FASTER_RCNN = {
    "roi.regressor.weight": "roi_heads.box_predictor.bbox_pred.weight",
    "neck.output.1.bias": "backbone.fpn.layer_blocks.1.0.bias",
    "rpn.conv.weight": "rpn.head.conv.0.0.weight",
}
RETINANET_KEYS = {
    "neck.extra.0.weight": "backbone.fpn.extra_blocks.p6.weight",
    "neck.extra.1.bias": "backbone.fpn.extra_blocks.p7.bias",
    "head.class_tower.0.0.weight": "head.classification_head.conv.0.0.weight",
    "head.box_tower.3.0.weight": "head.regression_head.conv.3.0.weight",
    "head.regressor.weight": "head.regression_head.bbox_reg.weight",
}
SAME = {  # name in detkit -> public name: one key of every part
    RESNET: FASTER_RCNN,
    MOBILENET: FASTER_RCNN,
    RETINANET: RETINANET_KEYS,
    RETINANET_V2: {**RETINANET_KEYS, "head.class_tower.2.1.bias": "head.classification_head.conv.2.1.bias"},
    FCOS: {
        "neck.extra.0.bias": "backbone.fpn.extra_blocks.p6.bias",
        "head.class_tower.3.0.bias": "head.classification_head.conv.9.bias",
        "head.box_tower.2.1.weight": "head.regression_head.conv.7.weight",
        "head.regressor.bias": "head.regression_head.bbox_reg.bias",
        "head.centerness.weight": "head.regression_head.bbox_ctrness.weight",
    },
    SSD300: {
        "backbone.21.weight": "backbone.features.21.weight",  # conv4_3
        "backbone.24.weight": "backbone.extra.0.1.weight",  # conv5_1
        "backbone.fc6.weight": "backbone.extra.0.7.1.weight",
        "backbone.fc7.bias": "backbone.extra.0.7.3.bias",
        "neck.l2_norm.scale": "backbone.scale_weight",
        "neck.levels.3.1.conv.weight": "backbone.extra.4.2.weight",
        "head.classifier.5.bias": "head.classification_head.module_list.5.bias",
        "head.regressor.0.weight": "head.regression_head.module_list.0.weight",
    },
    SSDLITE: {
        "backbone.13_expand.0.weight": "backbone.features.0.13.0.weight",
        "backbone.13_reduce.1.0.weight": "backbone.features.1.0.1.0.weight",
        "backbone.16.1.running_var": "backbone.features.1.3.1.running_var",
        "neck.levels.2.1.norm.weight": "backbone.extra.2.1.1.weight",
        "head.classifier.4.0.conv.weight": "head.classification_head.module_list.4.0.0.weight",
        "head.regressor.1.1.bias": "head.regression_head.module_list.1.1.bias",
    },
}


@pytest.fixture(scope="module", params=CONFIGS)
def public(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(name, a file such as torchvision publishes, with random weights)."""
    torch.manual_seed(0)
    reference = getattr(detection, request.param)(weights=None, weights_backbone=None)
    path = tmp_path_factory.mktemp("public") / "weights.pth"
    torch.save(reference.state_dict(), path)
    return request.param, path


def meta_state(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_detector(CONFIGS[name], CATEGORIES).state_dict()


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def test_the_key_map_covers_every_key_on_both_sides(public: tuple[str, Path]) -> None:
    name, path = public
    source = torch.load(path, weights_only=True)
    # torchvision makes batch norms where no weights are asked for; their counters are not in frozen ones
    converted = without_counters(convert_keys(source))
    if name in DENSE:
        converted = without_first_class(converted, 91)
    assert len(converted) == len(without_counters(source))
    expected = without_counters(meta_state(name))
    assert converted.keys() == expected.keys()
    assert all(converted[key].shape == expected[key].shape for key in expected)


def test_older_checkpoints_spell_some_keys_without_a_number(public: tuple[str, Path]) -> None:
    name, path = public
    config = CONFIGS[name]
    if not isinstance(config, FasterRCNNConfig):
        pytest.skip("the others have one spelling, but RetinaNet, which is below")
    source = torch.load(path, weights_only=True)
    old = {
        re.sub(r"((?:inner|layer)_blocks\.\d)\.0\.|(rpn\.head\.conv)\.0\.0\.", r"\1\2.", key): value
        for key, value in source.items()
    }
    number = 4 * len(config.backbone.strides) + 2  # weight and bias of two convolutions a level, and of the RPN's
    assert len(old.keys() - source.keys()) == number
    assert convert_keys(old).keys() == convert_keys(source).keys()


def test_older_retinanets_number_layers_without_blocks(tmp_path: Path) -> None:
    """The published COCO_V1 is such a file; torchvision reads it, and so gives the tower that is expected."""
    torch.manual_seed(0)
    reference = detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    source = reference.state_dict()
    old = {
        re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda match: f"{match[1]}.{2 * int(match[2])}.", key): value
        for key, value in source.items()
    }
    assert sum("conv.6." in key for key in old) == 4  # the last of four convolutions, of both towers
    state, expected = convert_keys(old), convert_keys(source)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_the_output_that_no_class_has_is_left_out_of_dense_detectors() -> None:
    """Two anchors of three outputs: rows 0 and 3 are background's."""
    state = {"head.classifier.weight": torch.arange(6.0).view(6, 1, 1, 1), "head.classifier.bias": torch.arange(6.0)}
    cut = without_first_class({**state, "other": torch.ones(3)}, 3)
    assert cut["head.classifier.bias"].tolist() == [1, 2, 4, 5]
    assert cut["head.classifier.weight"].flatten().tolist() == [1, 2, 4, 5]
    assert cut["other"].shape == (3,)


def test_a_file_on_disk_becomes_a_detector(public: tuple[str, Path]) -> None:
    name, path = public
    detector = load_torchvision(name, path)
    assert not detector.training
    assert len(detector.categories) == 90
    assert detector.categories.names[:3] == ("person", "bicycle", "car")
    assert detector.categories.names[11] == "N/A"  # COCO never used the id 12
    assert detector.categories.ids == tuple(range(1, 91)), "COCO's own"
    source = torch.load(path, weights_only=True)
    state = detector.state_dict()
    for key, public_key in SAME[name].items():
        assert torch.equal(state[key], source[public_key]), key
    epsilons = {module.eps for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)}
    # torchvision: overwrite_eps(model, 0.0) for the COCO_V1 of fasterrcnn_resnet50_fpn and retinanet_resnet50_fpn
    assert epsilons == {RESNET: {0.0}, RETINANET: {0.0}, MOBILENET: {1e-5}, FCOS: {1e-5}}.get(name, set())
    if name == SSDLITE:
        assert {m.eps for m in detector.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def test_weights_of_another_model_are_refused(public: tuple[str, Path]) -> None:
    name, path = public
    other = RESNET if name != RESNET else MOBILENET
    with pytest.raises(UserError, match=f"{path}: not the weights of {other}: "):
        load_torchvision(other, path)


def test_a_key_that_is_none_of_torchvisions() -> None:
    with pytest.raises(UserError, match=r"'head\.weight' is no key of a torchvision detector"):
        convert_keys({"rpn.head.cls_logits.weight": torch.zeros(1), "head.weight": torch.zeros(1)})


def test_an_unknown_name() -> None:
    with pytest.raises(
        UserError, match=f"torchvision:fasterrcnn: not known; known: {RESNET}, {MOBILENET}, {RETINANET}, "
    ):
        load_torchvision("fasterrcnn")


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>not found</html>", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: not a torchvision checkpoint: [^\n]*$"):
        load_torchvision(MOBILENET, path)


@pytest.mark.parametrize("value", [[1], {"a": 1}, torch.zeros(3)])
def test_a_file_that_holds_something_else(value: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(value, path)
    with pytest.raises(UserError, match=f"{path}: not a torchvision checkpoint: expected a dict of tensors"):
        load_torchvision(MOBILENET, path)


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    message = r"COCO_V1: cannot download https://\S+\.pth: .*not known.*; or fetch it .* put it into"
    with pytest.raises(UserError, match=f"{message} {tmp_path}/hub/checkpoints"):
        load_torchvision(MOBILENET)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_torchvision(MOBILENET, tmp_path / "weights.pth")

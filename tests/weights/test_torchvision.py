"""torchvision's checkpoints come in whole, and nothing else does."""

import re
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.faster_rcnn import TwoStageConfig
from detkit.structures import Categories
from detkit.weights.coco_keypoints import COCO_KEYPOINTS
from detkit.weights.torchvision import CONFIGS, convert_keys, load_torchvision, without_first_class

PEOPLE = replace(Categories.of_names(["person"]), keypoints=COCO_KEYPOINTS)
CATEGORIES = Categories.of_names([f"class {i}" for i in range(90)])
MOBILENET, RESNET = "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn"
RETINANET, RETINANET_V2 = "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"
FCOS = "fcos_resnet50_fpn"
MASK, MASK_V2, KEYPOINT = "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn"
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
V2 = {
    "backbone.bn1.weight": "backbone.body.bn1.weight",
    "neck.lateral.2.0.weight": "backbone.fpn.inner_blocks.2.0.weight",
    "neck.output.3.1.running_var": "backbone.fpn.layer_blocks.3.1.running_var",
    "rpn.conv.weight": "rpn.head.conv.0.0.weight",
    "rpn.further_convs.0.bias": "rpn.head.conv.1.0.bias",
    "roi.convs.9.weight": "roi_heads.box_head.3.0.weight",
    "roi.convs.4.running_mean": "roi_heads.box_head.1.1.running_mean",
    "roi.hidden.0.weight": "roi_heads.box_head.5.weight",
}
SAME = {  # name in detkit -> public name: one key of every part
    RESNET: FASTER_RCNN,
    MOBILENET: FASTER_RCNN,
    "fasterrcnn_mobilenet_v3_large_fpn": FASTER_RCNN,
    "fasterrcnn_resnet50_fpn_v2": V2,
    MASK: FASTER_RCNN
    | {
        "branches.mask.layers.0.weight": "roi_heads.mask_head.0.0.weight",
        "branches.mask.layers.6.bias": "roi_heads.mask_head.3.0.bias",
        "branches.mask.deconv.weight": "roi_heads.mask_predictor.conv5_mask.weight",
    },
    MASK_V2: V2
    | {
        "branches.mask.layers.3.weight": "roi_heads.mask_head.1.0.weight",
        "branches.mask.layers.10.running_var": "roi_heads.mask_head.3.1.running_var",
        "branches.mask.deconv.bias": "roi_heads.mask_predictor.conv5_mask.bias",
    },
    KEYPOINT: FASTER_RCNN
    | {
        "branches.keypoint.layers.14.weight": "roi_heads.keypoint_head.14.weight",
        "branches.keypoint.deconv.bias": "roi_heads.keypoint_predictor.kps_score_lowres.bias",
    },
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
        return build_detector(CONFIGS[name], PEOPLE if name == KEYPOINT else CATEGORIES).state_dict()


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def test_the_key_map_covers_every_key_on_both_sides(public: tuple[str, Path]) -> None:
    name, path = public
    source = torch.load(path, weights_only=True)
    # torchvision makes batch norms where no weights are asked for; their counters are not in frozen ones
    converted = without_counters(convert_keys(source))
    converted = without_first_class(converted, 91)
    assert len(converted) == len(without_counters(source))
    expected = without_counters(meta_state(name))
    assert converted.keys() == expected.keys()
    assert all(converted[key].shape == expected[key].shape for key in expected)


def test_older_checkpoints_spell_some_keys_without_a_number(public: tuple[str, Path]) -> None:
    name, path = public
    config = CONFIGS[name]
    if not isinstance(config, TwoStageConfig):
        pytest.skip("the others have one spelling, but RetinaNet, which is below")
    source = torch.load(path, weights_only=True)
    if name.endswith("v2"):
        pytest.skip("newer than the spelling")
    old = {
        re.sub(r"((?:inner|layer)_blocks\.\d)\.0\.|(rpn\.head\.conv)\.0\.0\.", r"\1\2.", key): value
        for key, value in source.items()
    }
    if name == MASK:
        old = {
            re.sub(r"mask_head\.(\d)\.0", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}", key): value
            for key, value in old.items()
        }
        assert torch.equal(convert_keys(old)["branches.mask.layers.4.weight"], source["roi_heads.mask_head.2.0.weight"])
    number = 4 * len(config.backbone.strides) + 2  # weight and bias of two convolutions a level, and of the RPN's
    assert len(old.keys() - source.keys()) == number + (8 if name == MASK else 0)  # of its four convolutions
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
    if name == KEYPOINT:
        assert detector.categories == PEOPLE
    else:
        assert len(detector.categories) == 90
        assert detector.categories.names[:3] == ("person", "bicycle", "car")
        assert detector.categories.names[11] == "N/A"  # COCO never used the id 12
        assert detector.categories.ids == tuple(range(1, 91)), "COCO's own"
    source = torch.load(path, weights_only=True)
    state = detector.state_dict()
    for key, public_key in SAME[name].items():
        assert torch.equal(state[key], source[public_key]), key
    epsilons = {module.eps for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)}
    # torchvision: overwrite_eps(model, 0.0) for the COCO_V1 of the first versions on ResNet-50, but not of FCOS
    first = (RESNET, RETINANET, MASK, KEYPOINT)
    frozen = (MOBILENET, "fasterrcnn_mobilenet_v3_large_fpn", FCOS)
    assert epsilons == ({0.0} if name in first else {1e-5} if name in frozen else set())
    if name in (MASK, MASK_V2):  # the first of 91 masks is that of background
        assert torch.equal(
            state["branches.mask.classifier.bias"], source["roi_heads.mask_predictor.mask_fcn_logits.bias"][1:]
        )
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
        UserError,
        match=f"torchvision:fasterrcnn: not known; known: {RESNET}, {RESNET}_v2, {MASK}, {MASK_V2}, {KEYPOINT}, ",
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


def test_the_keypoints_of_public_weights_are_cocos() -> None:
    """torchvision's names in its order; left and right change places; the spreads of COCO's evaluation."""
    from torchvision.models import get_model_weights

    public = get_model_weights(KEYPOINT)["COCO_V1"].meta
    assert list(COCO_KEYPOINTS.names) == public["keypoint_names"]
    names = COCO_KEYPOINTS.names
    assert [(names[a], names[b]) for a, b in COCO_KEYPOINTS.flip_pairs[::7]] == [
        ("left_eye", "right_eye"),
        ("left_ankle", "right_ankle"),
    ]
    assert len(COCO_KEYPOINTS.flip_pairs) == 8
    assert ("left_shoulder", "left_elbow") in [(names[a], names[b]) for a, b in COCO_KEYPOINTS.skeleton]
    assert len(COCO_KEYPOINTS.skeleton) == 19
    spreads = [26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]
    assert [round(1000 * sigma) for sigma in COCO_KEYPOINTS.sigmas] == spreads

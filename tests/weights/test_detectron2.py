"""Checkpoints of Detectron2 come in whole, with classes, boxes and anchors in detkit's order."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.cascade_rcnn import CascadeRCNNConfig
from detkit.detectors.detector import AnyDetector
from detkit.detectors.faster_rcnn import FasterRCNNConfig
from detkit.detectors.keypoint_rcnn import KeypointRCNNConfig
from detkit.detectors.mask_rcnn import MaskRCNNConfig
from detkit.detectors.retinanet import RetinaNetConfig
from detkit.engine.initialise import initialise
from detkit.engine.sources import load_detector
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.ops.anchors import cell_anchors
from detkit.structures import Categories
from detkit.weights.detectron2 import config_of, convert_keys

Shapes = Iterator[tuple[str, tuple[int, ...]]]
# kind -> the number of parameters that Detectron2 has; facts of its layers, at 80 classes, or at one with keypoints
COUNTS = {
    "faster": 41_699_936,
    "mask": 44_343_216,
    "keypoint": 59_133_158,
    "cascade": 71_984_926,
    "retinanet": 37_915_572,
}
UNUSED_BOX = 4 * 1025  # of background


def layer(name: str, *shape: int) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def norm_conv(name: str, out: int, inputs: int, size: int) -> Shapes:
    yield f"{name}.weight", (out, inputs, size, size)
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.norm.{part}", (out,)


def bottom_up() -> Shapes:
    """Detectron2's ResNet-50."""
    yield from norm_conv("stem.conv1", 64, 3, 7)
    inputs = 64
    for stage, blocks, width in ((2, 3, 64), (3, 4, 128), (4, 6, 256), (5, 3, 512)):
        for block in range(blocks):
            name = f"res{stage}.{block}"
            if block == 0:
                yield from norm_conv(f"{name}.shortcut", 4 * width, inputs, 1)
            yield from norm_conv(f"{name}.conv1", width, inputs, 1)
            yield from norm_conv(f"{name}.conv2", width, width, 3)
            yield from norm_conv(f"{name}.conv3", 4 * width, width, 1)
            inputs = 4 * width


def shapes_of(kind: str) -> Shapes:
    """The names and shapes of a file of the model zoo."""
    dense = kind == "retinanet"
    yield from ((f"backbone.bottom_up.{name}", shape) for name, shape in bottom_up())
    for level in range(3 if dense else 2, 6):
        yield from layer(f"backbone.fpn_lateral{level}", 256, 2 ** (level + 6), 1, 1)
        yield from layer(f"backbone.fpn_output{level}", 256, 256, 3, 3)
    if dense:
        yield from layer("backbone.top_block.p6", 256, 2048, 3, 3)
        yield from layer("backbone.top_block.p7", 256, 256, 3, 3)
        for number in (0, 2, 4, 6):
            yield from layer(f"head.cls_subnet.{number}", 256, 256, 3, 3)
            yield from layer(f"head.bbox_subnet.{number}", 256, 256, 3, 3)
        yield from layer("head.cls_score", 9 * 80, 256, 3, 3)
        yield from layer("head.bbox_pred", 9 * 4, 256, 3, 3)
        return
    yield from layer("proposal_generator.rpn_head.conv", 256, 256, 3, 3)
    yield from layer("proposal_generator.rpn_head.objectness_logits", 3, 256, 1, 1)
    yield from layer("proposal_generator.rpn_head.anchor_deltas", 12, 256, 1, 1)
    yield from region_heads(kind)


def region_heads(kind: str) -> Shapes:
    classes = 1 if kind == "keypoint" else 80
    for stage in ("0.", "1.", "2.") if kind == "cascade" else ("",):
        yield from layer(f"roi_heads.box_head.{stage}fc1", 1024, 12544)
        yield from layer(f"roi_heads.box_head.{stage}fc2", 1024, 1024)
        yield from layer(f"roi_heads.box_predictor.{stage}cls_score", classes + 1, 1024)
        yield from layer(f"roi_heads.box_predictor.{stage}bbox_pred", 4 if stage else 4 * classes, 1024)
    if kind in ("mask", "cascade"):
        for number in range(1, 5):
            yield from layer(f"roi_heads.mask_head.mask_fcn{number}", 256, 256, 3, 3)
        yield "roi_heads.mask_head.deconv.weight", (256, 256, 2, 2)
        yield "roi_heads.mask_head.deconv.bias", (256,)
        yield from layer("roi_heads.mask_head.predictor", 80, 256, 1, 1)
    if kind == "keypoint":
        for number in range(1, 9):
            yield from layer(f"roi_heads.keypoint_head.conv_fcn{number}", 512, 256 if number == 1 else 512, 3, 3)
        yield "roi_heads.keypoint_head.score_lowres.weight", (512, 17, 4, 4)
        yield "roi_heads.keypoint_head.score_lowres.bias", (17,)


def random_state(kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    state = {name: rng.random(shape, np.float32) for name, shape in shapes_of(kind)}
    state |= {"pixel_mean": np.zeros((3, 1, 1), np.float32), "anchor_generator.cell_anchors.0": np.zeros((9, 4))}
    return state | {"proposal_generator.anchor_generator.cell_anchors.4": np.zeros((3, 4))}


Loaded = tuple[str, dict[str, np.ndarray], AnyDetector]


@pytest.fixture(scope="module", params=COUNTS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """(kind, the arrays of a file as the model zoo has them, the detector that it became)."""
    state = random_state(request.param)
    path = tmp_path_factory.mktemp("zoo") / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}, protocol=2))
    detector, config = load_detector(f"detectron2:{path}")
    path.unlink()
    assert config is None
    assert not detector.training
    return request.param, state, detector


def test_every_parameter_comes_from_the_file(loaded: Loaded) -> None:
    """As many numbers as Detectron2 has, and the box of background, which is 0; no two of the file are the same."""
    kind, state, detector = loaded
    unused = UNUSED_BOX if kind in ("faster", "mask", "keypoint") else 0
    assert sum(p.numel() for p in detector.parameters()) == COUNTS[kind] + unused
    own = {name: value for name, value in detector.state_dict().items() if value.is_floating_point()}
    weights = {name: state[name] for name, _ in shapes_of(kind)}
    assert sum(value.numel() for value in own.values()) == sum(value.size for value in weights.values()) + unused
    total = sum(value.double().sum().item() for value in own.values())
    assert total == pytest.approx(sum(value.sum(dtype=np.float64) for value in weights.values()), rel=1e-9)


def test_a_key_of_each_part(loaded: Loaded) -> None:
    kind, state, detector = loaded
    own, bottom = detector.state_dict(), "backbone.bottom_up"
    same = {
        "backbone.conv1.weight": f"{bottom}.stem.conv1.weight",
        "backbone.bn1.running_var": f"{bottom}.stem.conv1.norm.running_var",
        "backbone.layer1.0.downsample.0.weight": f"{bottom}.res2.0.shortcut.weight",
        "backbone.layer3.0.downsample.1.bias": f"{bottom}.res4.0.shortcut.norm.bias",
        "backbone.layer4.2.bn3.running_mean": f"{bottom}.res5.2.conv3.norm.running_mean",
        "neck.lateral.0.weight": f"backbone.fpn_lateral{3 if kind == 'retinanet' else 2}.weight",
    }
    same |= {
        "faster": {"rpn.deltas.bias": "proposal_generator.rpn_head.anchor_deltas.bias"},
        "mask": {
            "neck.output.3.bias": "backbone.fpn_output5.bias",
            "branches.mask.layers.6.weight": "roi_heads.mask_head.mask_fcn4.weight",
            "branches.mask.classifier.weight": "roi_heads.mask_head.predictor.weight",
        },
        "keypoint": {
            "branches.keypoint.layers.14.bias": "roi_heads.keypoint_head.conv_fcn8.bias",
            "branches.keypoint.deconv.weight": "roi_heads.keypoint_head.score_lowres.weight",
        },
        "cascade": {
            "roi.stages.2.hidden.1.weight": "roi_heads.box_head.2.fc2.weight",
            "roi.stages.1.regressor.weight": "roi_heads.box_predictor.1.bbox_pred.weight",
        },
        "retinanet": {
            "neck.extra.0.weight": "backbone.top_block.p6.weight",
            "neck.output.2.weight": "backbone.fpn_output5.weight",
            "head.class_tower.3.0.weight": "head.cls_subnet.6.weight",
            "head.box_tower.1.0.bias": "head.bbox_subnet.2.bias",
        },
    }[kind]
    for name, public in same.items():
        np.testing.assert_array_equal(own[name].numpy(), state[public], err_msg=name)


def test_background_comes_first_and_anchors_stand_by_ratio(loaded: Loaded) -> None:
    kind, state, detector = loaded
    own = {name: value.numpy() for name, value in detector.state_dict().items()}
    if kind == "retinanet":
        # Detectron2 lists all ratios of the first size, then of the next; the anchor of each row must be the same
        sizes, ratios = [32 * 2 ** (octave / 3) for octave in range(3)], [0.5, 1.0, 2.0]
        theirs = [cell_anchors([size], [ratio])[0] for size in sizes for ratio in ratios]
        for row, anchor in enumerate(detector.head.anchors.shapes0):
            (public,) = (number for number, other in enumerate(theirs) if torch.allclose(anchor, other))
            for layer_name, width in (("cls_score", 80), ("bbox_pred", 4)):
                name = {"cls_score": "head.classifier", "bbox_pred": "head.regressor"}[layer_name]
                rows, public_rows = (slice(width * number, width * (number + 1)) for number in (row, public))
                for part in ("weight", "bias"):
                    expected = state[f"head.{layer_name}.{part}"][public_rows]
                    np.testing.assert_array_equal(own[f"{name}.{part}"][rows], expected)
        return
    prefix, public = ("roi.stages.1", "1.") if kind == "cascade" else ("roi", "")
    for part in ("weight", "bias"):
        scores = state[f"roi_heads.box_predictor.{public}cls_score.{part}"]
        np.testing.assert_array_equal(own[f"{prefix}.classifier.{part}"], np.concatenate([scores[-1:], scores[:-1]]))
        if kind != "cascade":
            boxes = state[f"roi_heads.box_predictor.bbox_pred.{part}"]
            np.testing.assert_array_equal(own[f"roi.regressor.{part}"][4:], boxes)
            assert not own[f"roi.regressor.{part}"][:4].any()


def test_the_rest_is_as_the_zoo_has_it(loaded: Loaded) -> None:
    kind, _, detector = loaded
    assert detector.input.config.channel_order == "bgr"
    assert detector.input.config.mean == (103.53, 116.28, 123.675)
    assert detector.input.config.std == (1, 1, 1)
    assert {norm.eps for norm in detector.modules() if isinstance(norm, FrozenBatchNorm2d)} == {1e-5}
    assert detector.backbone.layer2[0].conv1.stride == (2, 2)
    assert detector.backbone.layer2[0].conv2.stride == (1, 1)
    categories = detector.categories
    if kind == "keypoint":
        assert categories.names == ("person",)
        assert categories.keypoints is not None
        assert len(categories.keypoints.names) == 17
    else:
        assert (len(categories), categories.names[0], categories.ids[-1]) == (80, "person", 90)


def meta_state(kind: str) -> dict[str, Any]:
    with torch.device("meta"):
        return {name: torch.zeros(shape) for name, shape in shapes_of(kind)}


def test_configurations_of_the_zoo() -> None:
    """RoIAlign with the half pixel shift, anchors not rounded and at the stride, L1 losses (keypoints: smooth)."""
    configs = {kind: config_of(meta_state(kind)) for kind in COUNTS}
    types = (FasterRCNNConfig, MaskRCNNConfig, KeypointRCNNConfig, CascadeRCNNConfig, RetinaNetConfig)
    assert tuple(type(config) for config in configs.values()) == types
    for kind in ("faster", "mask", "keypoint", "cascade"):
        config = configs[kind]
        for part in (config.roi, config.mask, config.keypoint):
            assert part is None or (part.sampling_ratio, part.aligned) == (0, True)
        assert (config.rpn.anchors.rounding, config.rpn.anchors.spacing) == ("none", "stride")
        assert config.rpn.smooth_l1_beta == 0
        assert config.roi.smooth_l1_beta == (0.5 if kind == "keypoint" else 0)
    assert configs["mask"].mask.target == configs["cascade"].mask.target == "binary"
    assert configs["faster"].mask is None
    deep = meta_state("faster") | {
        f"backbone.bottom_up.res4.{block}.conv1.weight": torch.zeros(1, device="meta") for block in range(6, 23)
    }
    assert config_of(deep).backbone.name == "resnet101"


def written(folder: Path, content: object, name: str = "model.pkl") -> Path:
    path = folder / name
    path.write_bytes(pickle.dumps(content))
    return path


SMALL = {"roi_heads.box_predictor.cls_score.bias": np.zeros(4, np.float32)}
DEPTH = {f"backbone.bottom_up.res4.{block}.conv1.weight": np.zeros(1, np.float32) for block in range(6)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"w": 1}}, "not a model of Detectron2: expected arrays by name under 'model'"),
        ([1], "not a model of Detectron2"),
        ({"model": SMALL}, "expected a ResNet of 50 or 101 layers, whose C4 has 6 or 23 blocks, found 0"),
        ({"model": DEPTH}, "not a model of Detectron2: it has no classifier"),
        ({"model": DEPTH | SMALL}, r"the names of its 3 classes are not known; name a file .* detectron2:.*:NAMES"),
        ({"model": DEPTH | {"roi_heads.res5.0.conv1.weight": np.zeros(1)}}, "is no key of a Detectron2 detector"),
    ],
)
def test_files_of_other_content(content: object, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=f"^{path}: .*{message}"):
        load_detector(f"detectron2:{path}")


def test_names_of_classes_come_from_a_file_and_shapes_must_fit(tmp_path: Path) -> None:
    path = written(tmp_path, {"model": DEPTH | SMALL})
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\n")
    with pytest.raises(UserError, match=f"^{path}: not the weights of Detectron2's: Missing key"):
        load_detector(f"detectron2:{path}:{tmp_path / 'names.txt'}")


def test_a_source_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected detectron2:FILE or detectron2:FILE:NAMES"):
        load_detector("detectron2:")
    with pytest.raises(UserError, match="cannot read this file: No such file"):
        load_detector(f"detectron2:{tmp_path / 'none.pkl'}")


def test_a_checkpoint_that_detectron2_trained(tmp_path: Path) -> None:
    """A `.pth` with the state of the training beside the weights."""
    state = {name: torch.zeros(shape) for name, shape in shapes_of("faster")}
    state["roi_heads.box_predictor.cls_score.bias"][-1] = 3
    torch.save({"model": state, "optimizer": {}, "iteration": 9}, tmp_path / "model_final.pth")
    detector, _ = load_detector(f"detectron2:{tmp_path / 'model_final.pth'}")
    assert detector.state_dict()["roi.classifier.bias"][:2].tolist() == [3, 0]
    assert convert_keys(state)["roi.classifier.bias"][0] == 3


def test_a_start_from_it_warns_of_other_pixels_and_strides(tmp_path: Path) -> None:
    """A recipe with torchvision's input and strides would start from weights that see neither."""
    path = written(tmp_path, {"model": random_state("faster")})
    config = FasterRCNNConfig(backbone=ResNetConfig(weights=None))
    detector = build_detector(config, Categories.of_names(["person"]))
    pixels, strides = initialise(detector, f"detectron2:{path}").warnings
    assert pixels.endswith(
        "--set model.input.channel_order=bgr model.input.mean=[103.53,116.28,123.675] model.input.std=[1,1,1]"
    )
    assert "backbone.layer2.0.conv1.weight has the stride [1, 1], and in the source [2, 2]" in strides
    assert strides.endswith("--set model.backbone.stride_in_1x1=true")
    torch.save({name: torch.from_numpy(value) for name, value in random_state("faster").items()}, tmp_path / "a.pth")
    assert initialise(detector, str(tmp_path / "a.pth")).warnings == (pixels,)  # names alone say no strides

"""Mask and Keypoint R-CNN, version 2 of torchvision's R-CNNs, and Cascade R-CNN with masks, as published."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from detkit.config import UserError, override, parse_config
from detkit.detectors.build import build_detector, learned_columns
from detkit.detectors.cascade_rcnn import CascadeRCNNConfig
from detkit.detectors.detector import AnyDetector
from detkit.detectors.faster_rcnn import FasterRCNNConfig, TwoStageConfig
from detkit.detectors.keypoint_rcnn import KeypointRCNNConfig
from detkit.detectors.mask_rcnn import MaskRCNNConfig
from detkit.engine.initialise import take_over
from detkit.engine.settings import RunConfig
from detkit.engine.sources import Weights
from detkit.nn.backbones.resnet import ResNetConfig, build_resnet
from detkit.nn.heads.mask import MaskConfig
from detkit.structures import Categories, KeypointCategories
from detkit.weights.coco_keypoints import COCO_KEYPOINTS
from detkit.weights.torchvision import CONFIGS
from tests.detectors.batches import ROOT, cheap_config, make_batch, published_config

COCO = Categories.of_names([f"class {i}" for i in range(80)])
TORCHVISION = Categories.of_names([f"class {i}" for i in range(90)])
PERSON = replace(Categories.of_names(["person"]), keypoints=COCO_KEYPOINTS)
UNUSED_MASK = 257  # torchvision has a mask of background, 256 weights and a bias, which nothing reads
PARTS = ("neck", "roi", "branches.mask", "rpn")
UNUSED_BOX = 4 * 1025  # detkit and torchvision have a box of background, which Detectron2 leaves out


def num_parameters(config: TwoStageConfig, categories: Categories, part: str = "") -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_detector(config, categories).get_submodule(part).parameters())


@pytest.mark.parametrize(
    ("name", "categories", "expected"),
    [
        ("fasterrcnn_resnet50_fpn_v2", TORCHVISION, 43_712_278),
        ("maskrcnn_resnet50_fpn", TORCHVISION, 44_401_393 - UNUSED_MASK),
        ("maskrcnn_resnet50_fpn_v2", TORCHVISION, 46_359_409 - UNUSED_MASK),
        ("keypointrcnn_resnet50_fpn", PERSON, 59_137_258),
        ("fasterrcnn_mobilenet_v3_large_fpn", TORCHVISION, 19_386_354),
    ],
)
def test_parameter_counts_of_the_public_weights(name: str, categories: Categories, expected: int) -> None:
    """torchvision's metadata."""
    assert num_parameters(CONFIGS[name], categories) == expected


def test_version_2_part_by_part() -> None:
    """The parts of torchvision's `maskrcnn_resnet50_fpn_v2`; its backbone has 53,120 more with norms that train."""
    config = CONFIGS["maskrcnn_resnet50_fpn_v2"]
    assert num_parameters(config, TORCHVISION, "backbone") == 23_454_912 + 53_120
    assert num_parameters(config, TORCHVISION, "rpn") == 1_184_015
    with torch.device("meta"):
        detector = build_detector(config, TORCHVISION)
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in detector.named_modules()}
    assert counts["roi.convs"] + counts["roi.hidden"] == 15_207_424
    assert counts["branches.mask.layers"] == 2_361_344
    assert counts["branches.mask.deconv"] + counts["branches.mask.classifier"] == 285_787 - UNUSED_MASK


@pytest.mark.parametrize(
    ("file", "categories", "expected"),
    [
        ("faster_rcnn_r50_fpn_v2", TORCHVISION, 43_712_278),
        ("faster_rcnn_mobilenet_v3", TORCHVISION, 19_386_354),
        ("mask_rcnn_r50_fpn", TORCHVISION, 44_401_393 - UNUSED_MASK),
        ("mask_rcnn_r50_fpn_v2", TORCHVISION, 46_359_409 - UNUSED_MASK),
        ("mask_rcnn_r50_fpn_detectron2", COCO, 44_343_216 + UNUSED_BOX),  # Detectron2's layers
        ("cascade_mask_rcnn_r50_fpn", COCO, 71_984_926),  # Detectron2's layers
        ("keypoint_rcnn_r50_fpn", PERSON, 59_137_258),
    ],
)
def test_published_parameter_counts(file: str, categories: Categories, expected: int) -> None:
    assert num_parameters(published_config(ROOT / f"configs/coco/{file}.yaml").model, categories) == expected


def test_what_a_detector_learns_beside_boxes() -> None:
    assert learned_columns(FasterRCNNConfig()) == ()
    assert learned_columns(MaskRCNNConfig()) == ("masks",)
    assert learned_columns(KeypointRCNNConfig()) == ("keypoints",)
    assert learned_columns(CascadeRCNNConfig(mask=MaskConfig())) == ("masks",)
    assert learned_columns(KeypointRCNNConfig(mask=MaskConfig())) == ("masks", "keypoints")


def test_keypoints_need_data_with_keypoints() -> None:
    with torch.device("meta"), pytest.raises(UserError, match=r"model\.keypoint: a detector of keypoints needs data"):
        build_detector(KeypointRCNNConfig(), COCO)


def tiny(file: str, categories: Categories, *changes: str) -> AnyDetector:
    torch.manual_seed(0)
    tree = cheap_config(ROOT / "configs/coco" / file).model_dump(mode="json")
    small = ["model.backbone={name: resnet18, norm: bn, frozen_stages: 0}", "model.neck.out_channels=16"]
    return build_detector(parse_config(override(tree, [*small, *changes]), RunConfig).model, categories)


def test_training_has_the_losses_of_all_branches() -> None:
    categories = replace(COCO, keypoints=KeypointCategories(("head", "foot")))
    branches = ["model.mask={channels: [8]}", "model.keypoint={channels: [8]}"]
    for file, names in (
        ("faster_rcnn_r50_fpn.yaml", {"roi_class", "roi_box"}),
        ("cascade_rcnn_r50_fpn.yaml", {f"stage{i}_{part}" for i in (1, 2, 3) for part in ("class", "box")}),
    ):
        detector = tiny(file, categories, *branches)
        batch = make_batch(detector, [3, 0])
        losses = detector.train().criterion(detector(batch), batch.targets)
        assert losses.keys() == names | {"rpn_objectness", "rpn_box", "mask", "keypoint"}
        assert all(loss > 0 for loss in losses.values())


def test_the_masks_of_a_cascade_learn_from_the_sampled_proposals_of_its_first_stage() -> None:
    """Detectron2's rule; the boxes of the later stages are other ones, neither sampled nor given the objects."""
    detector = tiny("cascade_mask_rcnn_r50_fpn.yaml", COCO)
    outputs = detector.train()(make_batch(detector, [3, 2]))
    first = outputs.roi.stages[0]
    positive = first.targets.labels > 0
    assert torch.equal(outputs.branches["mask"].regions.boxes, first.regions.boxes[positive])
    assert torch.equal(outputs.branches["mask"].labels, first.targets.labels[positive] - 1)
    assert positive.sum() >= 5, "the objects themselves at least"


@torch.no_grad()
def test_the_masks_of_a_cascade_are_of_its_final_boxes() -> None:
    detector = tiny("cascade_mask_rcnn_r50_fpn.yaml", COCO, "model.roi.selection.score_threshold=0").eval()
    batch = make_batch(detector, [2], targets=False)
    rows = detector(batch).detections
    branch = detector.branches["mask"]
    features = detector.features(detector.input(batch.images, batch.sizes()))
    assert int(rows.counts[0]) > 5
    torch.testing.assert_close(branch.detect(features, replace(rows, masks=None)).masks, rows.masks)


def test_norms_of_heads_can_be_frozen_and_joined_across_processes() -> None:
    """`train.freeze` holds what has running statistics; torch's conversion finds every batch norm."""
    detector = tiny("mask_rcnn_r50_fpn_v2.yaml", COCO)
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    in_parts = {part: sum(m in set(detector.get_submodule(part).modules()) for m in norms) for part in PARTS}
    assert in_parts == {"neck": 8, "roi": 4, "branches.mask": 4, "rpn": 0}
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(detector)
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules()) == len(norms)


def test_masks_go_over_to_other_classes_by_name() -> None:
    """Rows of dog and person are those of the source; cactus, which it has not, starts at random. Points of another
    number do not fit, and that is said."""
    points = (KeypointCategories(("head", "foot")), KeypointCategories(("head", "foot", "tail")))
    branches = ["model.mask={channels: [8]}", "model.keypoint={channels: [8]}"]
    before = tiny(
        "faster_rcnn_r50_fpn.yaml",
        replace(Categories.of_names(["cat", "dog", "person"]), keypoints=points[0]),
        *branches,
    )
    torch.manual_seed(1)
    after = tiny(
        "faster_rcnn_r50_fpn.yaml",
        replace(Categories.of_names(["person", "cactus", "dog"]), keypoints=points[1]),
        *branches,
    )
    new = after.branches["mask"].classifier.weight[1].clone()
    source = {name: value + 1 if value.is_floating_point() else value for name, value in before.state_dict().items()}
    transfer = take_over(after, Weights(source, before.categories, "public weights"), "here")
    for part in ("weight", "bias"):
        name = f"branches.mask.classifier.{part}"
        assert name in transfer.loaded
        rows = after.state_dict()[name]
        assert torch.equal(rows[0], source[name][2])
        assert torch.equal(rows[2], source[name][1])
    assert torch.equal(after.branches["mask"].classifier.weight[1], new)
    assert "branches.mask.deconv.weight" in transfer.loaded
    assert transfer.new["branches.keypoint.deconv.bias"] == "[3] here, [2] there"
    assert "branches.keypoint.layers.0.weight" in transfer.loaded


def test_the_stride_of_a_bottleneck_may_be_in_its_first_convolution() -> None:
    """As MSRA's and Caffe's; in the first block of C3 to C5 alone, and the levels stay as large."""
    with torch.device("meta"):
        caffe, plain = (build_resnet(ResNetConfig(stride_in_1x1=first)) for first in (True, False))
        strides = {
            name: (block.conv1.stride[0], block.conv2.stride[0])
            for name, block in caffe.named_modules()
            if hasattr(block, "conv3")
        }
        levels = [[level.shape for level in network(torch.zeros(1, 3, 64, 96))] for network in (caffe, plain)]
    assert {name for name, pair in strides.items() if pair == (2, 1)} == {"layer2.0", "layer3.0", "layer4.0"}
    assert {pair for name, pair in strides.items()} == {(2, 1), (1, 1)}
    assert levels[0] == levels[1]
    with pytest.raises(ValidationError, match="stride_in_1x1: resnet18 has no bottleneck blocks"):
        ResNetConfig(name="resnet18", stride_in_1x1=True)

"""The dense detectors on a pyramid: RetinaNet, FCOS and ATSS."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from detkit.detectors.atss import ATSSConfig
from detkit.detectors.build import DetectorConfig, build_detector
from detkit.detectors.detector import AnyDetector
from detkit.detectors.fcos import FCOSConfig
from detkit.detectors.retinanet import RetinaNetConfig
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.dense import TowerConfig
from detkit.nn.heads.retinanet import RetinaNetHeadConfig
from detkit.nn.necks.fpn import DenseFPNConfig
from detkit.structures import Categories
from detkit.weights.torchvision import CONFIGS
from tests.detectors.batches import ROOT, published_config
from tests.detectors.overfit import overfit, small_backbone

COCO = Categories.of_names([f"class {i}" for i in range(80)])
TORCHVISION = Categories.of_names([f"class {i}" for i in range(91)])  # with an output for background


def on_meta(config: DetectorConfig, categories: Categories) -> AnyDetector:
    with torch.device("meta"):
        return build_detector(config, categories)


def parts_of(detector: AnyDetector, *names: str) -> list[int]:
    return [sum(p.numel() for p in detector.get_submodule(name).parameters()) for name in names]


@pytest.mark.parametrize(
    ("name", "whole", "parts"),
    [
        ("retinanet_resnet50_fpn", 34_014_999, [23_454_912, 3_868_672, 4_248_115, 2_443_300]),
        ("retinanet_resnet50_fpn_v2", 38_198_935, [23_454_912 + 53_120, 7_997_440, 4_249_139, 2_444_324]),
        ("fcos_resnet50_fpn", 32_269_600, [23_454_912, 3_868_672, 2_572_123, 2_373_893]),
    ],
)
def test_parameter_counts_of_the_public_weights(name: str, whole: int, parts: list[int]) -> None:
    """torchvision's metadata, and its parts; version 2 has batch norms that train, with 53,120 parameters."""
    detector = on_meta(CONFIGS[name], TORCHVISION)
    assert parts_of(detector, "") == [whole]
    backbone, neck, *layers = parts_of(
        detector, "backbone", "neck", "head.class_tower", "head.classifier", "head.box_tower", "head.regressor"
    )
    centerness = parts_of(detector, "head.centerness")[0] if name == "fcos_resnet50_fpn" else 0
    assert [backbone, neck, sum(layers[:2]), sum(layers[2:]) + centerness] == parts


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("coco/retinanet_r50_fpn.yaml", 34_014_999 - 11 * 9 * 2305),  # 80 classes for 91, nine anchors a cell
        ("coco/fcos_r50_fpn.yaml", 32_269_600 - 11 * 2305),
        ("coco/atss_r50_fpn.yaml", 32_242_202),  # MMDetection's, with frozen batch norms
    ],
)
def test_published_parameter_counts(file: str, expected: int) -> None:
    assert parts_of(on_meta(published_config(ROOT / "configs" / file).model, COCO), "") == [expected]


def test_levels_of_the_published_pyramids() -> None:
    """P3 to P7; P6 is computed from P5, of 256 channels, or in RetinaNet's second version from C5, of 2048."""
    for config in (RetinaNetConfig(), FCOSConfig(), ATSSConfig()):
        assert on_meta(config, COCO).neck.out_strides == (8, 16, 32, 64, 128)
    first, second = (on_meta(CONFIGS[f"retinanet_resnet50_fpn{v}"], COCO).neck.extra[0] for v in ("", "_v2"))
    assert (first.in_channels, second.in_channels) == (256, 2048)


@pytest.mark.parametrize("config", [RetinaNetConfig, FCOSConfig, ATSSConfig])
def test_parts_that_do_not_fit_are_refused(config: type[RetinaNetConfig]) -> None:
    with pytest.raises(ValidationError, match=r"backbone.strides: expected no gap between them, found \[8, 32\]"):
        config(backbone=ResNetConfig(strides=(8, 32)))
    tower = config().head.tower.model_copy(update={"groups": 32})
    with pytest.raises(
        ValidationError, match=r"head.tower.groups: expected a divisor of neck.out_channels, 40, found 32"
    ):
        config(neck=DenseFPNConfig(out_channels=40), head=config().head.model_copy(update={"tower": tower}))


def test_retinanet_has_sizes_for_each_level() -> None:
    with pytest.raises(ValidationError, match=r"head.anchors.sizes: expected 3 lists, one a feature level, found 5"):
        RetinaNetConfig(neck=DenseFPNConfig(extra_level="none"))


def test_sections_keep_the_other_defaults() -> None:
    """A tower that a file shortens is still RetinaNet's, FCOS's or ATSS's."""
    assert RetinaNetHeadConfig(tower=TowerConfig(convs=2)).tower.groups is None
    assert [type(config().head.tower)(convs=2).bias for config in (FCOSConfig, ATSSConfig)] == [True, False]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "backbone", "steps", "lr", "least"),
    [
        ("retinanet", [small_backbone((8, 16, 32))], 100, 2e-3, 0.9),
        ("fcos", [], 50, 1e-3, 0.85),  # with the small one, it learns all objects with some seeds only
        ("atss", [small_backbone((8, 16, 32))], 100, 2e-3, 0.85),
    ],
)
def test_a_few_pictures_are_learned_by_heart(
    name: str, backbone: list[str], steps: int, lr: float, least: float, tmp_path: Path
) -> None:
    """Two of the 15 objects, of 15 x 7 and 5 x 5 px, lie between the points of the finest level, 8 px apart: FCOS and
    ATSS cannot learn them."""
    changes = ["model.input.resize={name: short_side, size: 96, max_size: 160}", "model.neck.out_channels=64"]
    file = ROOT / f"configs/{name}.yaml"
    assert overfit(file, tmp_path, [*changes, *backbone], pictures=3, steps=steps, lr=lr) > least

"""DETR's published sizes, what its configuration refuses, its inputs, its export, and that it learns."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from detkit.detectors.build import build_detector
from detkit.detectors.detr import DETRConfig, HeadConfig
from detkit.nn.backbones import build_backbone
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.conditional_detr import ConditionalDETRHeadConfig
from detkit.nn.heads.dab_detr import DABDETRHeadConfig, DABTransformerConfig, DNDenoisingConfig, ProposalConfig
from detkit.nn.heads.detr import DETRHeadConfig
from detkit.nn.input import InputConfig, LetterboxConfig, StretchConfig
from detkit.nn.transformer import TransformerConfig
from detkit.structures import Categories
from tests.detectors.batches import ROOT, enliven, make_batch
from tests.detectors.export import check_export
from tests.detectors.overfit import overfit

ONE_CLASS = Categories.of_names(["thing"])


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "backbone_count", "total"),
    [
        (ResNetConfig(strides=(32,)), 23_454_912, 41_524_768),
        (ResNetConfig(strides=(16,), dilation=True), 23_454_912, 41_524_768),
        (ResNetConfig(name="resnet101", strides=(32,)), 42_394_816, 60_464_672),
    ],
)
def test_parameters_as_published(backbone: ResNetConfig, backbone_count: int, total: int) -> None:
    """facebookresearch/detr, with the 91 ids of COCO as classes."""
    with torch.device("meta"):
        detr = build_detector(DETRConfig(backbone=backbone), Categories.of_names([str(i) for i in range(91)]))
    head = detr.get_submodule("head")
    assert count(detr.get_submodule("backbone")) == backbone_count
    assert count(head.get_submodule("project")) == 524_544
    assert count(head.get_submodule("encoder")) == 7_890_432
    assert count(head.get_submodule("decoder")) == 9_473_024
    assert count(head.get_submodule("classifier")) == 23_644
    assert count(head.get_submodule("regressor")) == 132_612
    assert head.get_parameter("queries").shape == (100, 256)
    assert count(detr) == total


def test_the_stem_and_the_first_stage_are_frozen() -> None:
    detr = build_detector(DETRConfig(), ONE_CLASS)
    frozen = {name.split(".")[1] for name, p in detr.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": ResNetConfig()}, r"backbone.strides: the transformer reads one level, found \[4, 8, 16, 32\]"),
        ({"input": InputConfig(resize=LetterboxConfig())}, "input.resize: padding is masked here"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DETRConfig(**fields)  # type: ignore[arg-type]


def test_blocks_that_cannot_be_dilated() -> None:
    with pytest.raises(ValidationError, match="dilation: resnet18 has no bottleneck blocks"):
        ResNetConfig(name="resnet18", dilation=True)


def test_dilation_keeps_the_stride_of_c4() -> None:
    backbone = build_backbone(ResNetConfig(strides=(16, 16), dilation=True))
    assert backbone.out_strides == (16, 16)
    assert [level.shape[2:] for level in backbone(torch.zeros(1, 3, 64, 96))] == [(4, 6), (4, 6)]


def test_a_batch_is_as_large_as_its_largest_images() -> None:
    """The published padding: to no multiple of a stride, so that one image has none."""
    detr = build_detector(DETRConfig(input=InputConfig(resize={"name": "short_side", "size": 97})), ONE_CLASS)
    batch = make_batch(detr, [1, 1], [(120, 160), (160, 120)])
    assert batch.images.shape[2:] == (129, 129)
    assert batch.sizes().tolist() == [[97, 129], [129, 97]]


@torch.inference_mode()
def test_padding_alters_the_backbone_and_nothing_after_it() -> None:
    """As `detkit/detectors/detr.py` says: features at the border of a picture see the padding, attention does not."""
    config = DETRConfig(input=InputConfig(resize=StretchConfig(size=128)))
    detr = build_detector(config, Categories.of_names(["thing", "other"]))
    enliven(detr)
    detr.eval()
    alone = make_batch(detr, [2])
    sizes = alone.sizes()
    padded = F.pad(alone.images, (0, 128, 0, 64))
    (features,) = detr.backbone(detr.input(alone.images, sizes))
    (beside_padding,) = detr.backbone(detr.input(padded, sizes))
    assert beside_padding.shape[2:] == (6, 8)
    assert not torch.allclose(beside_padding[:, :, 3, 3], features[:, :, 3, 3], atol=1e-2)

    beside_padding[:, :, :4, :4] = features
    expected = detr.head([features], sizes, (128, 128))
    actual = detr.head([beside_padding], sizes, (192, 256))
    torch.testing.assert_close(actual.boxes, expected.boxes, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=0)


TINY = TransformerConfig(width=16, heads=4, encoder_layers=1, decoder_layers=2, feedforward=32, dropout=0.0)
TINY_DAB = DABTransformerConfig(**dict(TINY))


@pytest.mark.long
@pytest.mark.parametrize(
    "head",
    [
        DETRHeadConfig(transformer=TINY, num_queries=7),
        ConditionalDETRHeadConfig(transformer=TINY, num_queries=7),
        DABDETRHeadConfig(transformer=TINY_DAB, num_queries=7),
        DABDETRHeadConfig(transformer=TINY_DAB, num_queries=7, denoising=DNDenoisingConfig()),
        DABDETRHeadConfig(transformer=TINY_DAB, num_queries=7, proposals=ProposalConfig()),
    ],
    ids=["detr", "conditional", "anchors", "denoising", "proposals"],
)
def test_the_core_exports_with_any_batch_size(head: HeadConfig) -> None:
    """With padding, and for one head without: the program that is not exported then uses no mask."""
    torch.manual_seed(0)
    resize = {"name": "short_side", "size": 64, "max_size": 96}
    backbone = ResNetConfig(name="resnet18", frozen_stages=0, strides=(32,))
    config = DETRConfig(backbone=backbone, head=head, input=InputConfig(resize=resize))
    detr = build_detector(config, Categories.of_names(["thing", "other"]))
    check_export(detr, make_batch(detr, [1, 2], [(120, 160), (160, 120)]))
    if type(head) is DETRHeadConfig:
        check_export(detr, make_batch(detr, [1, 2], [(120, 160), (120, 160)]))


@pytest.mark.slow
def test_it_overfits_eight_pictures(tmp_path: Path) -> None:
    assert overfit(ROOT / "configs/detr.yaml", tmp_path, [], pictures=8, steps=200, lr=5e-4, clip_norm=1) > 0.95

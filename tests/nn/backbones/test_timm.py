"""Backbones of timm: the levels of a CNN, of a ViT and of a Swin are what timm's own classifiers compute."""

import copy
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from detkit.config import UserError
from detkit.engine.speed import accelerate
from detkit.nn.backbones import build_backbone
from detkit.nn.backbones.timm import TimmConfig

timm = pytest.importorskip("timm")

VIT = TimmConfig(model="vit_tiny_patch16_224", strides=(16,), options={"depth": 3, "embed_dim": 48, "img_size": 64})
SWIN = TimmConfig(
    model="swin_tiny_patch4_window7_224",
    strides=(4, 8, 16, 32),
    options={"depths": [2, 2, 2, 2], "embed_dim": 24},
)
CNN = TimmConfig(model="resnet18", strides=(8, 16, 32))
CONFIGS = pytest.mark.parametrize("config", [CNN, VIT, SWIN], ids=lambda config: config.model)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def classifier_of(config: TimmConfig, backbone: nn.Module, **options: Any) -> Any:
    """timm's classifier with the weights of `backbone`."""
    classifier = timm.create_model(config.model, **{**config.options, **options}).eval()
    state = {key.removeprefix("network.").removeprefix("model."): value for key, value in backbone.state_dict().items()}
    own = classifier.state_dict()
    renamed = {
        next((name for name in own if name.replace(".", "_") == key.replace(".", "_")), key): state[key]
        for key in state
    }
    missing, unexpected = classifier.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing} <= {"norm", "head", "fc"}
    return classifier


def lively(backbone: nn.Module) -> nn.Module:
    """With batch norms as after a training."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return backbone.eval()


@torch.no_grad()
def test_levels_of_a_cnn() -> None:
    backbone = lively(build_backbone(CNN))
    images = torch.randn(2, 3, 70, 90)
    levels = backbone(images)
    assert [tuple(level.shape[1:]) for level in levels] == [(128, 9, 12), (256, 5, 6), (512, 3, 3)]
    assert (backbone.out_channels, backbone.out_strides) == ((128, 256, 512), (8, 16, 32))
    classifier = classifier_of(CNN, backbone)
    torch.testing.assert_close(levels[-1], classifier.forward_features(images))
    stem = classifier.maxpool(classifier.act1(classifier.bn1(classifier.conv1(images))))
    torch.testing.assert_close(levels[0], classifier.layer2(classifier.layer1(stem)))


@torch.no_grad()
def test_levels_of_a_vit() -> None:
    """A level after each block, all at stride 16; the classifier's norm comes after the last."""
    config = VIT.model_copy(update={"strides": (16, 16)})
    backbone = build_backbone(config).eval()
    assert config.stage_strides == (16, 16, 16)
    images = torch.randn(2, 3, 64, 64)
    second, third = backbone(images)
    assert backbone.out_channels == (48, 48)
    assert third.shape == (2, 48, 4, 4)
    classifier = classifier_of(config, backbone)
    tokens = classifier.norm(third.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens, classifier.forward_features(images)[:, 1:])
    x = classifier._pos_embed(classifier.patch_embed(images))
    before_last = classifier.blocks[1](classifier.blocks[0](x))
    torch.testing.assert_close(second.flatten(2).transpose(1, 2), before_last[:, 1:])


@torch.no_grad()
def test_levels_of_a_swin() -> None:
    """On a map larger than its windows in each stage: the classifier shifts no window that is a whole map."""
    backbone = build_backbone(SWIN).eval()
    images = torch.randn(1, 3, 256, 320)
    levels = backbone(images)
    assert [tuple(level.shape) for level in levels] == [(1, 24 * 2**i, 64 // 2**i, 80 // 2**i) for i in range(4)]
    classifier = classifier_of(SWIN, backbone, img_size=[256, 320])
    expected = classifier.forward_features(images)
    torch.testing.assert_close(classifier.norm(levels[-1].permute(0, 2, 3, 1)), expected)
    torch.testing.assert_close(levels[0].permute(0, 2, 3, 1), classifier.layers[0](classifier.patch_embed(images)))


@CONFIGS
@pytest.mark.parametrize("size", [(61, 90), (100, 33)])
@torch.no_grad()
def test_pictures_of_any_size(config: TimmConfig, size: tuple[int, int]) -> None:
    backbone = build_backbone(config).eval()
    levels = backbone(torch.randn(1, 3, *size))
    for level, stride in zip(levels, config.strides, strict=True):
        assert tuple(level.shape[2:]) == tuple(-(-side // stride) for side in size)
        assert level.is_contiguous()


@CONFIGS
@torch.no_grad()
def test_fast_paths_change_no_number(config: TimmConfig) -> None:
    backbone = lively(build_backbone(config))
    faster = copy.deepcopy(backbone)
    accelerate(faster, constant=True)
    images = torch.randn(2, 3, 96, 160)
    torch.testing.assert_close(faster(images), backbone(images), atol=1e-4, rtol=1e-4)


@CONFIGS
def test_gradients_reach_everything_that_is_not_frozen(config: TimmConfig) -> None:
    backbone = build_backbone(config.model_copy(update={"frozen_stages": 2})).train()
    levels: list[Tensor] = backbone(torch.randn(2, 3, 64, 64))
    sum(level.square().sum() for level in levels).backward()  # type: ignore[union-attr]
    without = {name for name, parameter in backbone.named_parameters() if parameter.grad is None}
    assert without == {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert without


def test_frozen_stages_of_a_vit() -> None:
    """Its embeddings belong to the first block; what comes after stays in training mode."""
    backbone = build_backbone(VIT.model_copy(update={"frozen_stages": 2})).train()
    parts = {name.split(".")[2] for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert parts == {"cls_token", "pos_embed", "patch_embed", "blocks"}
    learning = {".".join(name.split(".")[2:4]) for name, p in backbone.named_parameters() if p.requires_grad}
    assert learning == {"blocks.2"}
    blocks = backbone.get_submodule("network.model.blocks")
    assert [block.training for block in blocks.children()] == [False, False, True]
    assert [block.attn.training for block in blocks.children()] == [False, False, True]


def test_frozen_batch_norms() -> None:
    config = CNN.model_copy(update={"norm": "frozen_bn"})
    backbone = build_backbone(config).train()
    before = copy.deepcopy(backbone.state_dict())
    backbone(torch.randn(2, 3, 64, 64))
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    names = {name.split(".")[-2] for name, _ in backbone.named_parameters()}
    assert not any("bn" in name for name in names)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("hgnetv2_b0", 1_850_396),
        ("hgnetv2_b2", 6_026_626),
        ("hgnetv2_b4", 13_553_376),
        ("hgnetv2_b5", 33_325_760),
    ],
)
def test_counts_of_hgnetv2(model: str, count: int) -> None:
    """Those of the `HGNetv2` in the code of D-FINE's authors, with `use_lab` in B0 and B2."""
    with torch.device("meta"):
        backbone = build_backbone(TimmConfig(model=model))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == count


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "hgnet_v2_b0"}, r"model: timm has no 'hgnet_v2_b0'; nearest: hgnetv2_b0, "),
        ({"model": "%%"}, r"model: timm has no '%%'; nearest: none, see timm\.list_models\(\)"),
        ({"strides": (8, 64)}, r"strides: timm has 4, 8, 16, 32, found \[8, 64\]"),
        ({"frozen_stages": 5}, "frozen_stages: timm has 4 stages, found 5"),
        (
            {"weights": "ssld_stage1"},
            r"weights: hgnetv2_b0 has no 'ssld_stage1'; known: ssld_stage1_in22k_in1k, ssld_stage2_ft_in1k",
        ),
        (
            {"model": "convnextv2_tiny", "strides": (16,), "options": {"depths": [1]}},
            r"options: timm's convnextv2_tiny cannot be built with \{\"depths\": \[1\]\}: list index out of range",
        ),
        ({"options": {"depth": 3}}, r"options: timm's hgnetv2_b0 cannot be built with \{\"depth\": 3\}: .*'depth'"),
    ],
)
def test_what_does_not_exist_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TimmConfig(**{"model": "hgnetv2_b0", **fields})
    assert TimmConfig(model="hgnetv2_b0", weights="ssld_stage1_in22k_in1k").weights
    with pytest.raises(ValidationError, match="model\n  Field required"):
        TimmConfig.model_validate({})


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"for a backbone of timm, timm must be installed: pip install -e '\.\[timm\]'"):
        TimmConfig(model="resnet34")


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    asked = []

    def no_network(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            asked.append(name)
            raise ConnectionError("Name or service not known\nand more")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", no_network)
    for weights in ("default", "ssld_stage2_ft_in1k"):
        with pytest.raises(
            UserError, match=r"backbone\.weights: timm cannot load hgnetv2_b0\S*: Name or service not known$"
        ):
            build_backbone(TimmConfig(model="hgnetv2_b0", weights=weights))
    assert asked == ["hgnetv2_b0", "hgnetv2_b0.ssld_stage2_ft_in1k"]
    build_backbone(TimmConfig(model="hgnetv2_b0"))

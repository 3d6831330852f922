import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d as Reference

from detkit.nn.backbones.inception import InceptionV3Config, build_inception_v3
from detkit.nn.backbones.mobilenet import MobileNetV3Config, build_mobilenet_v3
from detkit.nn.backbones.resnet import ResNetConfig, build_resnet
from detkit.nn.frozen import FoldedConv2d, FrozenBatchNorm2d, fold_frozen_norms


def draw_norms(network: nn.Module) -> None:
    """Statistics as of a trained network, none of them zero or one."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, Reference):
            for buffer in module.buffers():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


@pytest.mark.parametrize("bias", [False, True])
def test_a_folded_convolution_equals_convolution_and_norm(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=bias), Reference(8), nn.ReLU()
    ).double()
    draw_norms(plain)
    folded = nn.Sequential(copy.deepcopy(plain[0]), FrozenBatchNorm2d(8), nn.ReLU()).double()
    folded.load_state_dict(plain.state_dict())
    fold_frozen_norms(folded)
    assert isinstance(folded[0], FoldedConv2d)
    assert list(folded.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    for network in (plain, folded):
        network(x).square().sum().backward()
    assert_close(folded(x), plain(x))
    for ours, theirs in zip(folded.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


def levels_of(network: models.ResNet, x: Tensor) -> list[Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    levels = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
        levels.append(x)
    return levels


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_folded_resnet_equals_torchvisions(name) -> None:
    ours = build_resnet(ResNetConfig(name=name, frozen_stages=0)).double()
    theirs = models.get_model(name, weights=None, norm_layer=Reference).double()
    draw_norms(theirs)
    assert ours.load_state_dict(theirs.state_dict(), strict=False).missing_keys == []
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for mine, yours in zip(ours(x), levels_of(theirs, x), strict=True):
        assert_close(mine, yours)


@pytest.mark.parametrize(
    "backbone",
    [
        build_resnet(ResNetConfig(name="resnet50")),
        build_mobilenet_v3(MobileNetV3Config()),
        build_inception_v3(InceptionV3Config(norm="frozen_bn")),
    ],
    ids=["resnet", "mobilenet", "inception"],
)
def test_every_frozen_norm_of_a_backbone_is_folded(backbone: nn.Module) -> None:
    norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert norms
    assert all(norm.folded for norm in norms)


def test_a_copy_folds_its_own_norm() -> None:
    network = build_resnet(ResNetConfig(name="resnet18"))
    twin = copy.deepcopy(network)
    before = network(torch.ones(1, 3, 32, 32))[0]
    draw_norms(twin)
    assert network(torch.ones(1, 3, 32, 32))[0].equal(before)
    assert not twin(torch.ones(1, 3, 32, 32))[0].equal(before)


def test_batch_norm_that_learns_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    fold_frozen_norms(network)
    assert type(network[0]) is nn.Conv2d

"""Faster modules stand in place of plain ones and compute the same."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.testing import assert_close
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from detkit.accelerate import accelerate, folding
from detkit.accelerate.modules import FastConvBlock, FastSequential
from detkit.detectors.build import build_detector
from detkit.nn.blocks import ConvBlock
from detkit.structures import Categories
from detkit.weights.torchvision import CONFIGS
from tests.accelerate.networks import accelerated, draw_norms, gradients

X = torch.randn(2, 6, 9, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[nn.Conv2d]:
    """The convolutions that took a norm with them."""
    seen: list[nn.Conv2d] = []
    fold = folding._folded

    def count(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
        seen.append(conv)
        return fold(conv, norm, x)

    monkeypatch.setattr(folding, "_folded", count)
    return seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d, lambda n: nn.BatchNorm2d(n, affine=False)])
def test_a_convolution_takes_a_constant_norm_with_it(norm: type, bias: bool, folds: list[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1, groups=2, bias=bias), norm(8), nn.ReLU()).double().eval()
    if plain[1].weight is not None:
        draw_norms(plain)
    fast = accelerated(plain)
    assert type(fast) is FastSequential
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert_close(fast(X), plain(X))
    assert_close(gradients(fast, X), gradients(plain, X))
    assert len(folds) == 2


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_small"])
@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_a_network_computes_the_same(name: str, norm: type, folds: list[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    plain = models.get_model(name, weights=None, norm_layer=norm).double()
    draw_norms(plain)
    plain.eval()
    fast = accelerated(plain)
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert_close(fast(x), plain(x))
    assert_close(gradients(fast, x), gradients(plain, x))
    norms = [module for module in fast.modules() if type(module) is norm]
    stem = 1 if "resnet" in name else 0  # the container of torchvision's own ResNet is not one of ours
    assert len(folds) == 2 * (len(norms) - stem)


def test_norms_that_learn_are_left_alone(folds: list[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).double().train()
    fast = accelerated(plain)
    assert_close(gradients(fast, X), gradients(plain, X))
    assert_close(fast[1].running_mean, plain[1].running_mean)
    assert not folds
    assert_close(fast.eval()(X), plain.eval()(X))
    assert folds
    no_statistics = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).double().eval()
    assert_close(accelerated(no_statistics)(X), no_statistics(X))


def test_a_norm_that_learns_gets_a_gradient_without_gaps() -> None:
    """Where torch.cat joins what it gave to something else, the gradient is a slice of a larger one."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)).double().train()
    fast, x = accelerated(plain), X.contiguous(memory_format=torch.channels_last)
    gradients_of_norms: list[Tensor] = []
    for network in (plain, fast):
        handle = network[1].register_full_backward_hook(
            lambda m, grad_in, grad_out: gradients_of_norms.append(*grad_out)
        )
        torch.cat([network(x), network(x).cos()], dim=1).sin().sum().backward()
        handle.remove()
    for name, parameter in plain.named_parameters():
        assert_close(fast.get_parameter(name).grad, parameter.grad)
    dense = [gradient.is_contiguous(memory_format=torch.channels_last) for gradient in gradients_of_norms]
    assert len(dense) == 4
    assert all(dense[2:])


def test_an_activation_between_convolution_and_norm_stays_between(folds: list[nn.Conv2d]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), FrozenBatchNorm2d(4)).double()
    draw_norms(plain)
    assert_close(accelerated(plain)(X), plain(X))
    assert not folds


class Backwards(nn.Module):
    """Runs its children in another order than it names them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 1), FrozenBatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


def test_an_unknown_container_is_left_alone() -> None:
    plain = Backwards().double()
    draw_norms(plain)
    assert_close(accelerated(plain)(X), plain(X))


def test_a_convolution_with_two_norms() -> None:
    """As in the heads of EfficientDet: the levels share convolutions and have norms of their own."""
    torch.manual_seed(0)
    shared = nn.Conv2d(6, 6, 3, padding=1)
    plain = nn.ModuleList([nn.Sequential(shared, FrozenBatchNorm2d(6)) for _ in range(2)]).double()
    draw_norms(plain)
    fast = accelerate(copy.deepcopy(plain))
    assert fast[0][0] is fast[1][0]
    for fast_level, level in zip(fast, plain, strict=True):
        assert_close(fast_level(X), level(X))


def change_by_hook(module: nn.Sequential) -> None:
    module[0].register_forward_hook(lambda module, inputs, output: output * 2)


def halve_before_the_norm(module: nn.Sequential) -> None:
    module[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] / 2,))


CHANGES = {
    "forward hook": change_by_hook,
    "hook before the norm": halve_before_the_norm,
    "pruning": lambda module: prune.random_unstructured(module[0], "weight", 0.5),
    "parametrization": lambda module: parametrize.register_parametrization(module[0], "weight", nn.Hardtanh(-0.1, 0.1)),
    "another norm": lambda module: module.__setitem__(1, nn.GroupNorm(2, 4).double()),
    "another convolution": lambda module: module.__setitem__(0, nn.Conv2d(6, 4, 1).double()),
    "synchronised norms": lambda module: module.__setitem__(1, nn.SyncBatchNorm.convert_sync_batchnorm(module[1])),
    "data of a parameter": lambda module: module[0].weight.data.mul_(3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_afterwards_counts(change: object) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)).double().eval()
    draw_norms(plain)
    fast = accelerated(plain)
    before = fast(X)
    for network in (plain, fast):
        torch.manual_seed(7)
        change(network)
    assert_close(fast(X), plain(X))
    if "SyncBatchNorm" not in type(plain[1]).__name__:
        assert not torch.allclose(fast(X), before)


def test_a_copy_has_weights_of_its_own() -> None:
    network = accelerated(nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)))
    twin, x = copy.deepcopy(network), torch.ones(1, 3, 2, 2)
    before = network(x)
    draw_norms(twin)
    assert network(x).equal(before)
    assert not twin(x).equal(before)


def test_a_second_time_changes_nothing() -> None:
    network = accelerated(nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)))
    assert type(network[0]) is type(accelerated(network)[0])


def test_our_own_block() -> None:
    torch.manual_seed(0)
    plain = ConvBlock(6, 4, 3).double().eval()
    draw_norms(plain)
    fast = accelerated(plain)
    assert type(fast) is FastConvBlock
    assert isinstance(fast, ConvBlock)
    assert fast.out_channels == 4
    assert_close(fast(X), plain(X))


@pytest.mark.parametrize("model", ["fasterrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large"])
def test_a_built_detector_is_plain_and_every_norm_of_it_can_be_folded(model: str, folds: list[nn.Conv2d]) -> None:
    detector = build_detector(CONFIGS[model], Categories.of_names(["one", "two"])).eval()
    assert not any(type(module).__module__.startswith("detkit.accelerate") for module in detector.modules())
    names, state = dict(detector.named_modules()), list(detector.state_dict())
    accelerate(detector)
    assert list(detector.state_dict()) == state
    assert all(isinstance(module, type(names[name])) for name, module in detector.named_modules())
    norms = [module for module in detector.modules() if "BatchNorm2d" in type(module).__name__]
    with torch.inference_mode():
        detector.network(torch.zeros(1, 3, 320, 320), torch.tensor([[320, 320]]))
    assert len(set(folds)) == len(norms)
    assert not any(first is second for first, second in pairwise(folds))

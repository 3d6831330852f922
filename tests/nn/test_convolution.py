import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from detkit.detectors.build import build_detector
from detkit.nn import convolution
from detkit.nn.convolution import FastConv2d, accelerate
from detkit.weights.torchvision import CONFIGS


def draw_norms(network: nn.Module) -> None:
    """Statistics as of a trained network, none of them zero or one."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for buffer in module.buffers():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the input and of every parameter."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    network(x).sin().sum().backward()
    found = [x.grad, *(parameter.grad for parameter in network.parameters())]
    assert all(gradient is not None for gradient in found)
    network.zero_grad()
    return found


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_and_its_frozen_norm_are_what_they_were(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1, groups=2, bias=bias), FrozenBatchNorm2d(8), nn.ReLU()).double()
    draw_norms(plain)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    assert fast[0].norm == (fast[1],)
    assert {key: value.tolist() for key, value in fast.state_dict().items()} == {
        key: value.tolist() for key, value in plain.state_dict().items()
    }
    x = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    assert_close(fast(x), plain(x))
    assert_close(gradients(fast, x), gradients(plain, x))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_small"])
def test_a_network_is_what_it_was(name: str) -> None:
    torch.manual_seed(0)
    plain = models.get_model(name, weights=None, norm_layer=FrozenBatchNorm2d).double()
    draw_norms(plain)
    plain.eval()
    fast = copy.deepcopy(plain)
    accelerate(fast)
    assert not any(type(module) is FrozenBatchNorm2d for module in fast.modules()), "all follow a convolution"
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert_close(fast(x), plain(x))
    assert_close(gradients(fast, x), gradients(plain, x))


def test_a_copy_has_its_own_norm() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4))
    accelerate(network)
    twin, x = copy.deepcopy(network), torch.ones(1, 3, 2, 2)
    before = network(x)
    draw_norms(twin)
    assert network(x).equal(before)
    assert not twin(x).equal(before)


def test_batch_norm_that_learns_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    accelerate(network)
    assert network[0].norm == ()
    assert type(network[1]) is nn.BatchNorm2d


CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
    {"kernel_size": 3, "padding": 6, "dilation": 6},
    {"kernel_size": (1, 5), "stride": (2, 1), "padding": (0, 2)},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_the_gradient_without_avx512_is_the_same(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 8, **options)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    x = torch.randn(2, 16, 15, 12).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert "_Convolution" in type(fast(x).grad_fn).__name__
    assert_close(fast(x), plain(x), atol=1e-5, rtol=1e-5)
    assert_close(gradients(fast, x), gradients(plain, x), atol=1e-4, rtol=1e-5)
    with torch.no_grad():
        frozen = fast.requires_grad_(False)(x)
    assert_close(frozen, plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("conv", "x"),
    [
        (nn.Conv2d(16, 8, 3), torch.randn(1, 16, 9, 9)),
        (nn.Conv2d(16, 8, 1), torch.randn(1, 16, 9, 9).contiguous(memory_format=torch.channels_last)),
        (nn.Conv2d(16, 16, 3, groups=16), torch.randn(1, 16, 9, 9).contiguous(memory_format=torch.channels_last)),
        (nn.Conv2d(3, 8, 3), torch.randn(1, 3, 9, 9).contiguous(memory_format=torch.channels_last)),
    ],
    ids=["contiguous", "1x1", "depthwise", "few channels"],
)
def test_other_gradients_are_torchs_own(conv: nn.Conv2d, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not convolution._has_slow_gradient(conv, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not convolution._has_slow_gradient(nn.Conv2d(16, 8, 3), x)


@pytest.mark.parametrize("model", ["fasterrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large"])
def test_every_convolution_of_a_built_detector_is_fast(model: str) -> None:
    detector = build_detector(CONFIGS[model], ["one", "two"])
    convolutions = [module for module in detector.modules() if isinstance(module, nn.Conv2d)]
    assert all(type(conv) is FastConv2d for conv in convolutions)
    assert any(conv.norm for conv in convolutions) == ("resnet" in model)
    assert not any(type(module) is FrozenBatchNorm2d for module in detector.modules())

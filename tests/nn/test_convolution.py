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
from detkit.structures import Categories
from detkit.weights.torchvision import CONFIGS


def draw_norms(network: nn.Module) -> None:
    """Sets random statistics and affine parameters, so that a missing batch norm changes the outputs."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for buffer in module.buffers():
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the input and of every parameter."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    network(x).sin().sum().backward()
    result = [x.grad, *(parameter.grad for parameter in network.parameters())]
    assert all(gradient is not None for gradient in result)
    network.zero_grad()
    return result


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_and_its_frozen_norm_compute_the_same(bias: bool) -> None:
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
def test_a_network_computes_the_same(name: str) -> None:
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


def test_batch_norm_that_learns_does_not_change() -> None:
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
    assert not convolution._is_dense_with_avx2(conv, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not convolution._is_dense_with_avx2(nn.Conv2d(16, 8, 3), x)


@pytest.mark.parametrize("model", ["fasterrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large"])
def test_every_convolution_of_a_built_detector_is_fast(model: str) -> None:
    detector = build_detector(CONFIGS[model], Categories.of_names(["one", "two"]))
    convolutions = [module for module in detector.modules() if isinstance(module, nn.Conv2d)]
    assert all(type(conv) is FastConv2d for conv in convolutions)
    assert any(conv.norm for conv in convolutions) == ("resnet" in model)
    assert not any(type(module) is FrozenBatchNorm2d for module in detector.modules())


WINOGRAD_SHAPES = [  # B, C, K, H, W
    (1, 16, 16, 20, 20),
    (2, 32, 16, 15, 21),  # odd: tiles reach over the border
    (3, 16, 48, 1, 150),
    (401, 16, 16, 1, 1),
    (1, 48, 32, 61, 40),  # several blocks of tiles, the last one not full
]


@pytest.mark.parametrize("shape", WINOGRAD_SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_winograd_equals_the_convolution(shape: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    torch.manual_seed(0)
    b, c, k, h, w = shape
    fast = nn.Conv2d(c, k, 3, padding=1, bias=bias)
    plain = copy.deepcopy(fast).double()
    accelerate(fast)
    x = torch.randn(b, c, h, w).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert "Convolution3x3" in type(fast(x).grad_fn).__name__
    assert fast(x).is_contiguous(memory_format=torch.channels_last)
    assert_close(fast(x).double(), plain(x.double()), atol=5e-6, rtol=0)
    expected = [gradient.float() for gradient in gradients(plain, x.double())]
    assert_close(gradients(fast, x), expected, atol=2e-4, rtol=1e-5)
    with torch.inference_mode():
        assert fast(x).equal(fast(x.clone(memory_format=torch.preserve_format)))


def test_winograd_without_some_of_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen convolution needs only the gradient of its input; the first trained one needs none of its input."""
    pytest.importorskip("numba")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 16, 1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)), nn.ReLU(True))
    plain[:2].requires_grad_(False)
    plain[3].requires_grad_(False)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    for network in (plain, fast):
        network(torch.linspace(-1, 1, 2700).view(1, 3, 30, 30)).square().sum().backward()
    assert [parameter.grad is None for parameter in fast.parameters()] == [True] * 4 + [False] * 2 + [True] * 2
    assert_close(fast[2].weight.grad, plain[2].weight.grad, atol=1e-5, rtol=1e-4)


def test_winograd_does_not_depend_on_threads_or_on_the_rest_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    torch.manual_seed(0)
    fast = nn.Conv2d(16, 32, 3, padding=1)
    accelerate(fast)
    x = torch.randn(4, 16, 25, 30).contiguous(memory_format=torch.channels_last)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(fast(x))
    finally:
        torch.set_num_threads(before)
    assert all(result.equal(results[0]) for result in results)
    assert torch.cat([fast(image[None]) for image in x]).equal(results[0])


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"kernel_size": 3, "padding": 1}, 19),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, 40),
        ({"kernel_size": 3, "padding": 2, "dilation": 2}, 40),
        ({"kernel_size": 3}, 40),
        ({"kernel_size": 5, "padding": 1}, 40),
    ],
    ids=str,
)
def test_no_winograd_for_other_convolutions(options: dict, size: int) -> None:
    x = torch.randn(1, 16, size, size).contiguous(memory_format=torch.channels_last)
    assert not convolution._is_for_winograd(nn.Conv2d(16, 16, **options), x)
    assert not convolution._is_for_winograd(nn.Conv2d(16, 24, 3, padding=1), x.repeat(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 32, 40, 40), "to have 16 channels, but got 32 channels instead"),
        (torch.zeros(1, 16, 40, 40, dtype=torch.float64), "type"),
        (torch.zeros(40, 40), "3D"),
    ],
    ids=["channels", "dtype", "dimensions"],
)
def test_torch_refuses_an_input_that_does_not_fit(x: Tensor, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    conv = nn.Conv2d(16, 16, 3, padding=1)
    accelerate(conv)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    assert not convolution._is_dense_with_avx2(conv, x)
    with pytest.raises(RuntimeError, match=message):
        conv(x)

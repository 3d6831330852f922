import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detkit.accelerate import convolution, processor
from tests.accelerate.networks import accelerated, gradients


@pytest.fixture(autouse=True)
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with AVX2 and no AVX-512, where products of matrices are torch's own."""
    monkeypatch.setattr(processor, "has_avx2_alone", lambda: True)
    monkeypatch.setattr(processor, "is_amd_with_avx512", lambda: False)


CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
    {"kernel_size": 3, "padding": 6, "dilation": 6},
    {"kernel_size": (1, 5), "stride": (2, 1), "padding": (0, 2)},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_the_gradient_without_avx512_is_the_same(options: dict) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 8, **options)
    fast = accelerated(plain)
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
def test_other_gradients_are_torchs_own(conv: nn.Conv2d, x: Tensor) -> None:
    assert not convolution._oneDNN_is_slow(conv, x, conv.weight, conv.bias)
    dense, channels_last = nn.Conv2d(16, 8, 3), torch.ones(1, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    assert convolution._oneDNN_is_slow(dense, channels_last, dense.weight, dense.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not convolution._oneDNN_is_slow(dense, channels_last, dense.weight, dense.bias)


WINOGRAD_SHAPES = [  # B, C, K, H, W
    (1, 16, 16, 20, 20),
    (2, 32, 16, 15, 21),  # odd: tiles reach over the border
    (3, 16, 48, 1, 150),
    (401, 16, 16, 1, 1),
    (1, 48, 32, 61, 40),  # several blocks of tiles, the last one not full
]


@pytest.mark.parametrize("shape", WINOGRAD_SHAPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_winograd_equals_the_convolution(shape: tuple[int, ...], bias: bool) -> None:
    pytest.importorskip("numba")
    torch.manual_seed(0)
    b, c, k, h, w = shape
    conv = nn.Conv2d(c, k, 3, padding=1, bias=bias)
    fast, plain = accelerated(conv), copy.deepcopy(conv).double()
    x = torch.randn(b, c, h, w).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert "Convolution3x3" in type(fast(x).grad_fn).__name__
    assert fast(x).is_contiguous(memory_format=torch.channels_last)
    assert_close(fast(x).double(), plain(x.double()), atol=5e-6, rtol=0)
    expected = [gradient.float() for gradient in gradients(plain, x.double())]
    assert_close(gradients(fast, x), expected, atol=2e-4, rtol=1e-5)
    with torch.inference_mode():
        assert fast(x).equal(fast(x.clone(memory_format=torch.preserve_format)))


def test_winograd_without_some_of_the_gradients() -> None:
    """A frozen convolution needs only the gradient of its input; the first trained one needs none of its input."""
    pytest.importorskip("numba")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 16, 1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)), nn.ReLU(True))
    plain[:2].requires_grad_(False)
    plain[3].requires_grad_(False)
    fast = accelerated(plain)
    for network in (plain, fast):
        network(torch.linspace(-1, 1, 2700).view(1, 3, 30, 30)).square().sum().backward()
    assert [parameter.grad is None for parameter in fast.parameters()] == [True] * 4 + [False] * 2 + [True] * 2
    assert_close(fast[2].weight.grad, plain[2].weight.grad, atol=1e-5, rtol=1e-4)


def test_winograd_does_not_depend_on_threads_or_on_the_rest_of_the_batch() -> None:
    pytest.importorskip("numba")
    torch.manual_seed(0)
    fast = accelerated(nn.Conv2d(16, 32, 3, padding=1))
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
def test_torch_refuses_an_input_that_does_not_fit(x: Tensor, message: str) -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    fast = accelerated(conv)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    assert not convolution._oneDNN_is_slow(conv, x, conv.weight, conv.bias)
    with pytest.raises(RuntimeError, match=message):
        fast(x)


@pytest.mark.parametrize(
    ("channels", "options"),
    [(3, {"stride": 2}), (7, {"stride": (1, 2), "bias": False}), (12, {"stride": 3})],
)
def test_few_channels_and_a_stride_do_not_overrun_their_memory(channels: int, options: dict) -> None:
    """In channels_last torch's own gradient of these ends the process (torch 2.14): so the reference is contiguous."""
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 8, 1, **options)
    fast = accelerated(plain)
    x = torch.randn(4, channels, 64, 51, requires_grad=True)
    own = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    for _ in range(3):
        actual = gradients(fast, own)
    assert_close(fast(own), plain(x))
    assert_close(actual, gradients(plain, x), atol=1e-4, rtol=1e-4)

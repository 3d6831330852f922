"""Linear layers and convolutions of 1 x 1 by oneDNN's product, as on AMD's processors with AVX-512."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, vmap
from torch.testing import assert_close

from detkit.accelerate import processor, products
from tests.accelerate.networks import accelerated, gradients

GENERATOR = torch.Generator().manual_seed(1)


@pytest.fixture(autouse=True)
def amd_with_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "is_amd_with_avx512", lambda: True)
    if not products._oneDNN_multiplies():
        pytest.skip("torch has no product by oneDNN here")


def check_equal(plain: nn.Module, x: Tensor) -> nn.Module:
    """The result and the gradients are those of float64, and come from oneDNN. Returns the faster module."""
    fast, precise = accelerated(plain), copy.deepcopy(plain).double()
    nodes, names = [fast(x.clone().requires_grad_()).grad_fn], set()
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [parent for parent, _ in node.next_functions if parent]
    assert "_ProductBackward" in names
    assert_close(fast(x).double(), precise(x.double()), atol=1e-5, rtol=0)
    for gradient, expected in zip(gradients(fast, x), gradients(precise, x.double()), strict=True):
        assert_close(gradient.double(), expected, atol=1e-4, rtol=1e-4)
    return fast


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(700, 48), (2, 350, 48), (7, 2, 50, 48), (2, 2100, 48), (16, 5000)], ids=str)
def test_a_linear_layer_gives_the_same(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    check_equal(nn.Linear(shape[-1], 40, bias=bias), torch.randn(shape, generator=GENERATOR))


def test_of_rows_that_are_apart_in_memory() -> None:
    torch.manual_seed(0)
    check_equal(nn.Linear(48, 40), torch.randn(48, 700, generator=GENERATOR).t())
    check_equal(nn.Linear(48, 40), torch.randn(350, 2, 96, generator=GENERATOR)[..., ::2])


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_of_one_by_one_gives_the_same(bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 21, 17, generator=GENERATOR).contiguous(memory_format=torch.channels_last)
    fast = check_equal(nn.Conv2d(32, 24, 1, bias=bias), x)
    assert fast(x).is_contiguous(memory_format=torch.channels_last)
    one_pixel = torch.randn(600, 32, 1, 1, generator=GENERATOR)
    check_equal(nn.Conv2d(32, 24, 1, bias=bias), one_pixel)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"groups": 2}], ids=str)
def test_other_convolutions_are_no_product(options: dict) -> None:
    x = torch.randn(2, 32, 31, 30, generator=GENERATOR).contiguous(memory_format=torch.channels_last)
    plain = nn.Conv2d(32, 24, 1, **options)
    fast = accelerated(plain)
    assert "_Product" not in type(fast(x).grad_fn).__name__
    assert_close(fast(x), plain(x))


def test_without_some_of_the_gradients() -> None:
    """A frozen layer needs only the gradient of its input; the first needs none of its input."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 48))
    plain[1].requires_grad_(False)
    fast = accelerated(plain)
    x = torch.randn(700, 48, generator=GENERATOR)
    for network in (plain, fast):
        network(x).square().sum().backward()
    assert [parameter.grad is None for parameter in fast.parameters()] == [False] * 2 + [True] * 2 + [False] * 2
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            assert_close(fast.get_parameter(name).grad, parameter.grad, atol=1e-4, rtol=1e-4)


def test_the_gradient_has_a_gradient() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 40)
    results = []
    for network in (plain, accelerated(plain)):
        x = torch.randn(700, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (slope,) = torch.autograd.grad(network(x).sin().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), [x, network.weight]))
    assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)


def test_the_gradient_of_a_sum_which_is_one_number_for_all() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 40)
    fast, x = accelerated(plain), torch.randn(700, 48, generator=GENERATOR)
    for network in (plain, fast):
        network(x).sum().backward()
    assert_close(fast.weight.grad, plain.weight.grad, atol=1e-4, rtol=1e-4)


def test_what_torch_must_do_itself() -> None:
    plain = nn.Linear(48, 40)
    fast, x = accelerated(plain), torch.randn(3, 700, 48, generator=GENERATOR)
    weight, bias = fast.weight, fast.bias
    assert products.is_product_faster(x, weight, bias)
    assert not products.is_product_faster(x[:1, :5], weight, bias)  # so little that starting it takes longer
    assert not products.is_product_faster(x.double(), weight.double(), bias.double())
    assert not products.is_product_faster(x, weight.double(), bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not products.is_product_faster(x, weight, bias)
        assert fast(x).dtype == torch.bfloat16
    state = dict(plain.named_parameters())
    assert_close(vmap(lambda row: functional_call(fast, state, (row,)))(x), plain(x))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(fast(forward_ad.make_dual(x, x))).tangent
    assert_close(tangent, x @ plain.weight.t())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fast(torch.zeros(700, 47))
    exported = torch.export.export(nn.Sequential(fast), (x,)).module()
    assert_close(exported(x), plain(x))


def test_a_torch_without_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> Tensor:
        raise AttributeError

    products._oneDNN_multiplies.cache_clear()
    try:
        monkeypatch.setattr(products, "_multiply", missing)
        plain, x = nn.Linear(48, 40), torch.randn(700, 48, generator=GENERATOR)
        assert accelerated(plain)(x).equal(plain(x))
    finally:
        products._oneDNN_multiplies.cache_clear()

"""What else torch does with a function gives the same for ops and accelerated networks as for plain ones."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradgradcheck
from torch.func import functional_call, grad, jacfwd, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torchvision import ops as torchvision_ops
from torchvision.ops import FrozenBatchNorm2d

from detkit.accelerate import accelerate, processor
from detkit.nn.blocks import ConvBlock
from detkit.ops import dispatch
from detkit.ops.iou import box_iou
from detkit.ops.nms import class_aware_nms, nms
from detkit.ops.roi import roi_align
from tests.accelerate.networks import accelerated, draw_norms
from tests.ops.cases import random_boxes

BOXES = random_boxes(20, size=100).float()
SCORES = torch.linspace(1, 0.1, 20)
LABELS = torch.arange(20) % 3
FEATURES = torch.randn(1, 16, 25, 25, generator=torch.Generator().manual_seed(1))
X = torch.randn(1, 16, 20, 20, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def every_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "has_avx2_alone", lambda: True)
    monkeypatch.setattr(processor, "is_amd_with_avx512", lambda: True)
    assert dispatch.kernels() is not None


def networks() -> tuple[nn.Module, nn.Module]:
    """The same, plain and accelerated; the second takes Winograd, folded norms and the fast gradient of weights."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1),
        FrozenBatchNorm2d(16),
        nn.ReLU(inplace=True),
        ConvBlock(16, 32, 3, act="swish"),
        nn.Conv2d(32, 16, 3, stride=2, padding=1),
        nn.Sigmoid(),
    ).eval()
    draw_norms(plain)
    return plain, accelerated(plain)


def of_both(compute: Callable[[nn.Module], object]) -> tuple[object, object]:
    plain, fast = networks()
    return compute(fast), compute(plain)


def assert_same(compute: Callable[[nn.Module], object], tolerance: float = 1e-4) -> None:
    actual, expected = of_both(compute)
    assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_the_network_here_takes_the_fast_paths() -> None:
    _, fast = networks()
    seen: list[str] = []

    def walk(node: object) -> None:
        if node is not None:
            seen.append(type(node).__name__)
            for parent, _ in node.next_functions:
                walk(parent)

    walk(fast(X.contiguous(memory_format=torch.channels_last)).grad_fn)
    assert {"_Convolution3x3Backward", "_ConvolutionBackward"} <= set(seen)


# Ops


def test_vmap() -> None:
    batch = torch.stack([BOXES[:10], BOXES[10:]])
    expected = torch.stack([torchvision_ops.box_iou(boxes, BOXES) for boxes in batch])
    assert_close(vmap(box_iou, in_dims=(0, None))(batch, BOXES), expected)


def test_grad_of_a_function_that_calls_nms() -> None:
    def best(boxes: Tensor, suppress: Callable[..., Tensor]) -> Tensor:
        return boxes[suppress(boxes, SCORES, 0.5)].square().sum()

    assert_close(grad(best)(BOXES, nms), grad(best)(BOXES, torchvision_ops.nms))

    def best_of_classes(boxes: Tensor) -> Tensor:
        return boxes[class_aware_nms(boxes, SCORES, LABELS, 0.5)].square().sum()

    kept = class_aware_nms(BOXES, SCORES, LABELS, 0.5)
    expected = torch.zeros_like(BOXES).index_copy(0, kept, 2 * BOXES[kept])
    assert_close(grad(best_of_classes)(BOXES), expected)


def test_forward_mode_of_iou() -> None:
    direction = torch.ones_like(BOXES).cumsum(1)
    _, expected = jvp(lambda boxes: torchvision_ops.box_iou(boxes, BOXES), (BOXES,), (direction,))
    assert expected.abs().max() > 0
    _, actual = jvp(lambda boxes: box_iou(boxes, BOXES), (BOXES,), (direction,))
    assert_close(actual, expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(BOXES, direction)
        assert_close(forward_ad.unpack_dual(box_iou(dual, BOXES)).tangent, expected)
        assert_close(forward_ad.unpack_dual(box_iou(BOXES, dual)).tangent.T, expected)
    jacobian = jacfwd(lambda boxes: box_iou(boxes, BOXES).sum())(BOXES)
    assert_close((jacobian * direction).sum(), expected.sum())


def test_make_fx_records_operations() -> None:
    program = make_fx(lambda boxes1, boxes2: box_iou(boxes1, boxes2))(BOXES[:5], BOXES[5:12])
    other1, other2 = BOXES[8:13] + 1, BOXES[1:8] + 2
    assert_close(program(other1, other2), box_iou(other1, other2))
    program = make_fx(lambda features: roi_align(features, [BOXES], 3, 0.25, sampling_ratio=2))(FEATURES)
    assert_close(program(FEATURES * 2), roi_align(FEATURES * 2, [BOXES], 3, 0.25, sampling_ratio=2))
    plain, fast = networks()
    assert_close(make_fx(fast)(X)(X * 2), plain(X * 2), atol=1e-5, rtol=1e-5)


def test_second_derivative_of_roi_align() -> None:
    """It is linear in the features: a gradient of the gradient is either zero or, as in torchvision, refused."""
    features = FEATURES.clone().requires_grad_()
    pooled = roi_align(features, [BOXES], 3, 0.25, sampling_ratio=2)
    first = torch.autograd.grad(pooled.square().sum(), features, create_graph=True)[0]
    with pytest.raises(RuntimeError):
        first.square().sum().backward()


# Networks


def test_grad_and_vmap_of_a_network() -> None:
    assert_same(lambda network: grad(lambda x: network(x).square().sum())(X))
    batch = torch.stack([X, 2 * X, 3 * X])
    assert_same(lambda network: vmap(network)(batch))

    def of_parameters(network: nn.Module) -> dict[str, Tensor]:
        state = {name: value.detach() for name, value in network.named_parameters()}
        return grad(lambda state: functional_call(network, state, (X,)).square().sum())(state)

    assert_same(of_parameters)

    def per_sample(network: nn.Module) -> dict[str, Tensor]:
        state = {name: value.detach() for name, value in network.named_parameters()}
        of_one = grad(lambda state, x: functional_call(network, state, (x,)).square().sum())
        return vmap(of_one, in_dims=(None, 0))(state, batch)

    assert_same(per_sample)


def test_forward_mode_of_a_network() -> None:
    assert_same(lambda network: jvp(network, (X,), (torch.ones_like(X),)))

    def of_a_weight(network: nn.Module) -> Tensor:
        name, weight = next(iter(network.named_parameters()))
        return jvp(
            lambda weight: functional_call(network, {name: weight}, (X,)), (weight,), (torch.ones_like(weight),)
        )[1]

    assert_same(of_a_weight)


@pytest.mark.parametrize("penalty_on", ["input", "parameters"])
def test_the_gradient_of_a_gradient(penalty_on: str) -> None:
    """As in a gradient penalty, where the first gradient starts from a constant."""

    def penalty(network: nn.Module) -> list[Tensor]:
        x = X.clone(memory_format=torch.channels_last).requires_grad_()
        of = [x] if penalty_on == "input" else list(network.parameters())
        first = torch.autograd.grad(network(x).sum(), of, create_graph=True)
        total = torch.stack([gradient.square().sum() for gradient in first]).sum()
        return list(torch.autograd.grad(total, [x, *network.parameters()], allow_unused=True))

    plain, fast = networks()
    for actual, reference in zip(penalty(fast), penalty(plain), strict=True):
        assert (actual is None) == (reference is None)
        if actual is not None:
            scale = reference.abs().max() + 1e-6
            assert_close(actual / scale, reference / scale, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_any_default_dtype(dtype: torch.dtype) -> None:
    expected = networks()[0](X)
    fast = networks()[1]
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        actual = fast(X.contiguous(memory_format=torch.channels_last))
    finally:
        torch.set_default_dtype(before)
    assert actual.dtype == torch.float32
    assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_any_default_device() -> None:
    plain, fast = networks()
    with torch.device("meta"):
        actual = fast(X.contiguous(memory_format=torch.channels_last))
    assert_close(actual, plain(X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_dtype_of_a_network(dtype: torch.dtype) -> None:
    assert_same(lambda network: network.to(dtype)(X.to(dtype)), 1e-9 if dtype == torch.float64 else 0.05)


def test_export_of_an_accelerated_network() -> None:
    plain, fast = networks()
    program = torch.export.export(fast, (X,)).module()
    assert_close(program(X * 2), plain(X * 2), atol=1e-5, rtol=1e-5)


def constant_networks() -> tuple[nn.Module, nn.Module]:
    """The same, plain and accelerated as for prediction, after a first run that has computed the folded weights."""
    plain, _ = networks()
    fast = accelerate(nn.ModuleList([copy.deepcopy(plain)]), constant=True)[0]
    with torch.no_grad():
        assert_close(fast(X), plain(X), atol=1e-5, rtol=1e-5)
    assert fast[0].folded is not None
    return plain, fast


@torch.no_grad()
def test_export_of_a_network_with_constant_weights() -> None:
    plain, fast = constant_networks()
    program = torch.export.export(fast, (X,)).module()
    assert_close(program(X * 2), plain(X * 2), atol=1e-5, rtol=1e-5)
    assert_close(fast(X), plain(X), atol=1e-5, rtol=1e-5)  # no tensor of the trace has stayed in it


@torch.no_grad()
def test_transforms_of_a_network_with_constant_weights() -> None:
    """Of its input, and of its weights, which then are others for each sample."""
    plain, fast = constant_networks()
    batch = torch.stack([X, 2 * X])
    assert_close(vmap(fast)(batch), vmap(plain)(batch), atol=1e-5, rtol=1e-5)
    state = {name: torch.stack([value, value * 2]) for name, value in plain.named_parameters()}
    actual, expected = (
        vmap(lambda state, network=network: functional_call(network, state, (X,)))(state) for network in (fast, plain)
    )
    assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert_close(fast(X), plain(X), atol=1e-5, rtol=1e-5)


def test_gradgradcheck_of_the_fast_gradient_of_weights() -> None:
    from detkit.accelerate.convolution import _Convolution

    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda x, weight: _Convolution.apply(x, weight, None, (1, 1), (1, 1), (1, 1)), (x, weight))

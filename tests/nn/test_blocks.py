"""Each layer equals the loops or the formula that define it."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from detkit.nn.blocks import SPP, Activation, ConvBlock, L2Norm, LocallyConnected, Reorg, activation

FORMULAS = {
    "linear": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "leaky": lambda x: x if x > 0 else 0.1 * x,
    "logistic": lambda x: 1 / (1 + math.exp(-x)),
    "mish": lambda x: x * math.tanh(math.log(1 + math.exp(x))),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "prelu": lambda x: x if x > 0 else 0.25 * x,  # before training
}


@pytest.mark.parametrize("name", get_args(Activation))
def test_activations(name: Activation) -> None:
    values = [-3.0, -0.5, 0.0, 0.5, 3.0, 7.0]
    expected = [FORMULAS[name](x) for x in values]
    layer = activation(name).double()
    assert layer(torch.tensor(values, dtype=torch.float64)).tolist() == pytest.approx(expected)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def test_conv_block_is_convolution_then_batch_norm_then_activation() -> None:
    block = ConvBlock(4, 6, 3, 2, groups=2, act="leaky", norm_eps=0.01).double().eval()
    mean, variance, gamma, beta = (random(6, seed=seed) for seed in range(4))
    block.norm.running_mean.copy_(mean)
    block.norm.running_var.copy_(variance.square())
    block.norm.weight.copy_(gamma)
    block.norm.bias.copy_(beta)
    x = random(2, 4, 7, 9)
    y = torch.nn.functional.conv2d(x, block.conv.weight, stride=2, padding=1, groups=2)
    y = (y - mean[:, None, None]) / (variance**2 + 0.01).sqrt()[:, None, None] * gamma[:, None, None]
    y = y + beta[:, None, None]
    torch.testing.assert_close(block(x), torch.where(y > 0, y, 0.1 * y))
    assert [name for name, _ in block.named_parameters()] == ["conv.weight", "norm.weight", "norm.bias"]


@torch.no_grad()
def test_conv_block_without_norm_has_a_bias() -> None:
    block = ConvBlock(3, 5, 3, norm=False, act="linear").double()
    assert not block.conv.bias.any()
    block.conv.bias.copy_(random(5))
    x = random(1, 3, 4, 4)
    expected = torch.nn.functional.conv2d(x, block.conv.weight, padding=1) + random(5)[:, None, None]
    torch.testing.assert_close(block(x), expected)
    assert [name for name, _ in block.named_parameters()] == ["conv.weight", "conv.bias"]


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "size"),
    [(1, 1, None, (8, 6)), (3, 1, None, (8, 6)), (7, 2, None, (4, 3)), (3, 2, None, (4, 3)), (3, 1, 0, (6, 4))],
)
def test_conv_block_keeps_the_size_unless_strided(
    kernel_size: int, stride: int, padding: int | None, size: tuple[int, int]
) -> None:
    block = ConvBlock(2, 3, kernel_size, stride, padding=padding)
    assert block(torch.zeros(1, 2, 8, 6)).shape == (1, 3, *size)
    assert block.out_channels == 3


def test_l2_norm() -> None:
    norm = L2Norm(3, 20.0).double()
    with torch.no_grad():
        norm.scale[1] = 10.0
    x = random(2, 3, 4, 5)
    y = norm(x)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                length = math.sqrt(sum(x[b, c, i, j].item() ** 2 for c in range(3)))
                expected = [scale * x[b, c, i, j].item() / length for c, scale in enumerate((20.0, 10.0, 20.0))]
                assert y[b, :, i, j].tolist() == pytest.approx(expected)
    assert not norm(torch.zeros(1, 3, 1, 1, dtype=torch.float64)).any()  # and no division by zero
    assert torch.autograd.gradcheck(norm, x.requires_grad_())


def darknet_reorg(x: Tensor, s: int) -> Tensor:
    """`reorg_cpu` as yolov2.cfg's layer calls it, on one image: the indices of a forward map, read backwards."""
    c, h, w = x.shape
    source, out = x.flatten().tolist(), [0.0] * x.numel()
    for k in range(c):
        for j in range(h):
            for i in range(w):
                in_index = i + w * (j + h * k)
                c2 = k % (c // s**2)
                offset = k // (c // s**2)
                w2 = i * s + offset % s
                h2 = j * s + offset // s
                out[in_index] = source[w2 + w * s * (h2 + h * s * c2)]
    return torch.tensor(out, dtype=x.dtype).view(c * s**2, h // s, w // s)


@pytest.mark.parametrize(("shape", "stride"), [((4, 2, 2), 2), ((8, 4, 6), 2), ((64, 26, 26), 2), ((18, 6, 3), 3)])
def test_reorg_is_darknets(shape: tuple[int, int, int], stride: int) -> None:
    x = random(2, *shape)
    y = Reorg(stride)(x)
    for image, result in zip(x, y, strict=True):
        assert torch.equal(result, darknet_reorg(image, stride))
    # space-to-depth is the obvious but wrong implementation
    assert not torch.equal(y, torch.nn.functional.pixel_unshuffle(x, stride))


def test_spp_is_maximum_by_maximum() -> None:
    x = random(1, 2, 6, 7)
    y = SPP((3, 5))(x)
    assert y.shape == (1, 6, 6, 7)
    for group, reach in enumerate((2, 1, 0)):  # the largest pool first, the input last
        for c in range(2):
            for i in range(6):
                for j in range(7):
                    window = x[0, c, max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1]
                    assert y[0, 2 * group + c, i, j] == window.max()


def test_spp_of_yolov3() -> None:
    assert [pool.kernel_size for pool in SPP().pools] == [13, 9, 5]


@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(3, 1, None), (3, 2, None), (2, 1, 0), (1, 1, None)])
def test_locally_connected_has_weights_of_its_own_in_every_cell(
    kernel_size: int, stride: int, padding: int | None
) -> None:
    layer = LocallyConnected(3, 4, kernel_size, (5, 6), stride, padding).double()
    pad = kernel_size // 2 if padding is None else padding
    torch.nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    x = random(2, 3, 5, 6)
    y = layer(x)
    rows, columns = (5 + 2 * pad - kernel_size) // stride + 1, (6 + 2 * pad - kernel_size) // stride + 1
    assert y.shape == (2, 4, rows, columns)
    for b, o, i, j in torch.cartesian_prod(*(torch.arange(n) for n in y.shape)).tolist():
        total = layer.bias[o, i, j].item()
        weight = layer.weight[i * columns + j, o].view(3, kernel_size, kernel_size)
        for c in range(3):
            for u in range(kernel_size):
                for v in range(kernel_size):
                    row, column = i * stride + u - pad, j * stride + v - pad
                    if 0 <= row < 5 and 0 <= column < 6:
                        total += weight[c, u, v].item() * x[b, c, row, column].item()
        assert y[b, o, i, j].item() == pytest.approx(total)
    assert torch.autograd.gradcheck(layer, x[:1].requires_grad_())


def test_one_image_on_a_map_of_one_cell_trains_with_the_running_statistics() -> None:
    block = ConvBlock(3, 4, 1).train()
    x = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(block(x), block.eval()(x))
    block.train()(torch.randn(2, 3, 1, 1))
    assert (block.norm.running_mean != 0).any()  # two values are a statistic

"""The parts of YOLOv5, YOLOX and YOLOv7: which maps are joined in which order, and what folds into one convolution."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.nn.csp import CSP, Focus, PooledPyramid
from detkit.nn.elan import ELAN, SPPCSPC, Downsample, Taps


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def enliven(module: nn.Module) -> nn.Module:
    """Statistics of norms as after a training."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return module.eval()


@pytest.mark.parametrize(
    ("taps", "convs", "order"),
    [
        ("pairs", 4, "convs.3 convs.1 first side"),  # yolov7.cfg: route -1,-3,-5,-7
        ("pairs", 6, "convs.5 convs.3 convs.1 first side"),  # yolov7x.cfg: route -1,-3,-5,-7,-9
        ("all", 4, "convs.3 convs.2 convs.1 convs.0 first side"),  # yolov7.cfg: route -1,-2,-3,-4,-5,-7
        ("in_order", 2, "side first convs.0 convs.1"),  # yolov7-tiny.cfg: route -5,-3,-2,-1
    ],
)
def test_elan_joins_the_maps_that_darknet_routes(taps: Taps, convs: int, order: str) -> None:
    block = ELAN(3, 5, side=4, hidden=2, convs=convs, taps=taps).eval()
    maps: dict[str, Tensor] = {}
    for name, layer in block.named_modules():
        layer.register_forward_hook(
            lambda _, inputs, output, name=name: maps.update({name: output, f"{name} in": inputs[0]})
        )
    block(torch.randn(1, 3, 6, 6))
    torch.testing.assert_close(maps["merge in"], torch.cat([maps[name] for name in order.split()], dim=1))
    assert maps["convs.0 in"] is maps["first"]


def test_the_convolution_of_a_downsample_comes_first() -> None:
    block, x = enliven(Downsample(4, 3)), torch.randn(1, 4, 8, 8)
    assert isinstance(block, Downsample)
    convolved, pooled = block(x).chunk(2, dim=1)
    torch.testing.assert_close(convolved, block.strided(block.reduce(x)))
    torch.testing.assert_close(pooled, block.pooled(F.max_pool2d(x, 2)))


@pytest.mark.parametrize("tiny", [False, True])
def test_pools_of_a_pyramid_are_of_one_map(tiny: bool) -> None:
    """Three pools beside each other, as in the cfg files: not a pool of the pool of the pool."""
    block, x = enliven(SPPCSPC(4, 3, tiny=tiny)), torch.randn(1, 4, 20, 20)
    assert isinstance(block, SPPCSPC)
    y = block.before(x)
    pools = [F.max_pool2d(y, size, 1, size // 2) for size in (5, 9, 13)]
    main = block.after(torch.cat([*reversed(pools), y] if tiny else [y, *pools], dim=1))
    joined = [block.side(x), main] if tiny else [main, block.side(x)]
    torch.testing.assert_close(block(x), block.merge(torch.cat(joined, dim=1)))


def test_the_pooled_pyramid_of_yolov5_is_that_of_yolox() -> None:
    block, x = enliven(PooledPyramid(4, 6)), torch.randn(1, 4, 20, 20)
    assert isinstance(block, PooledPyramid)
    y = block.reduce(x)
    pools = [F.max_pool2d(y, size, 1, size // 2) for size in (5, 9, 13)]
    torch.testing.assert_close(block(x), block.merge(torch.cat([y, *pools], dim=1)))


def test_focus_takes_columns_first() -> None:
    """Each 2 x 2 pixels: above left, below left, above right, below right."""
    focus = Focus(2)
    seen: list[Any] = []
    focus.conv.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    focus.eval()(x)
    assert seen[0][0, ::3, 0, 0].tolist() == [0, 4, 1, 5]


def test_a_shortcut_adds_the_input_of_each_bottleneck() -> None:
    x = torch.randn(1, 4, 6, 6)
    for shortcut in (True, False):
        block = CSP(4, 4, 2, shortcut=shortcut).eval()
        for inner in block.blocks:
            nn.init.zeros_(inner.expand.conv.weight)  # type: ignore[union-attr,arg-type]
        main = block.main(x) if shortcut else torch.zeros_like(block.main(x))
        torch.testing.assert_close(block(x), block.merge(torch.cat([main, block.side(x)], dim=1)))

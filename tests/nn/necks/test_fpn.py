"""The pyramid is torchvision's."""

from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detkit.nn.necks.fpn import FPN, FPNConfig

CHANNELS = (8, 12, 20)
STRIDES = (8, 16, 32)


@pytest.mark.parametrize("extra_level", ["pool", "none"])
@pytest.mark.parametrize(
    "sizes", [[(32, 40), (16, 20), (8, 10)], [(25, 37), (13, 19), (7, 10)], [(3, 1), (2, 1), (1, 1)]]
)
@torch.no_grad()
def test_equal_to_torchvision_on_even_and_odd_sizes(sizes: list[tuple[int, int]], extra_level: str) -> None:
    torch.manual_seed(0)
    ours = FPN(FPNConfig(out_channels=16, extra_level=extra_level), CHANNELS, STRIDES)
    theirs = FeaturePyramidNetwork(list(CHANNELS), 16, LastLevelMaxPool() if extra_level == "pool" else None)
    for i in range(len(CHANNELS)):
        torch.nn.init.normal_(theirs.inner_blocks[i][0].bias)
        torch.nn.init.normal_(theirs.layer_blocks[i][0].bias)
        ours.lateral[i].load_state_dict(theirs.inner_blocks[i][0].state_dict())
        ours.output[i].load_state_dict(theirs.layer_blocks[i][0].state_dict())
    features = [torch.randn(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]
    expected = list(theirs(OrderedDict((str(i), f) for i, f in enumerate(features))).values())
    levels = ours(features)
    assert len(levels) == len(expected) == len(ours.out_strides) == len(ours.out_channels)
    for level, reference in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, reference)


def test_the_extra_level_doubles_the_last_stride() -> None:
    neck = FPN(FPNConfig(out_channels=16), CHANNELS, STRIDES)
    assert neck.out_strides == (8, 16, 32, 64)
    assert neck.out_channels == (16,) * 4
    assert FPN(FPNConfig(extra_level="none"), CHANNELS, STRIDES).out_strides == STRIDES

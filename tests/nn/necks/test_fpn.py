"""The pyramid equals torchvision's."""

from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from detkit.nn.necks.fpn import FPN, FPNConfig, enlarged

CHANNELS = (8, 12, 20)
STRIDES = (8, 16, 32)


def extra_block(extra_level: str) -> ExtraFPNBlock | None:
    match extra_level:
        case "pool":
            return LastLevelMaxPool()
        case "conv_c5":
            return LastLevelP6P7(20, 16)  # torchvision reads C5 where the channels differ
        case "conv_p5":
            return LastLevelP6P7(16, 16)  # and P5 where they do not
    return None


@pytest.mark.parametrize("extra_level", ["pool", "none", "conv_c5", "conv_p5"])
@pytest.mark.parametrize(
    "sizes", [[(32, 40), (16, 20), (8, 10)], [(25, 37), (13, 19), (7, 10)], [(3, 1), (2, 1), (1, 1)]]
)
@torch.no_grad()
def test_equal_to_torchvision_on_even_and_odd_sizes(sizes: list[tuple[int, int]], extra_level: str) -> None:
    torch.manual_seed(0)
    neck = FPN(FPNConfig(out_channels=16, extra_level=extra_level), CHANNELS, STRIDES)
    reference = FeaturePyramidNetwork(list(CHANNELS), 16, extra_block(extra_level))
    for i in range(len(CHANNELS)):
        torch.nn.init.normal_(reference.inner_blocks[i][0].bias)
        torch.nn.init.normal_(reference.layer_blocks[i][0].bias)
        neck.lateral[i].load_state_dict(reference.inner_blocks[i][0].state_dict())
        neck.output[i].load_state_dict(reference.layer_blocks[i][0].state_dict())
    if extra_level.startswith("conv"):
        for conv, source in zip(neck.extra, (reference.extra_blocks.p6, reference.extra_blocks.p7), strict=True):
            torch.nn.init.normal_(source.bias)
            conv.load_state_dict(source.state_dict())
    features = [torch.randn(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]
    expected = list(reference(OrderedDict((str(i), f) for i, f in enumerate(features))).values())
    levels = neck(features)
    assert len(levels) == len(expected) == len(neck.out_strides) == len(neck.out_channels)
    for level, expected_level in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, expected_level)


@pytest.mark.parametrize(
    ("extra_level", "strides"),
    [
        ("none", STRIDES),
        ("pool", (*STRIDES, 64)),
        ("conv_c5", (*STRIDES, 64, 128)),
        ("conv_p5", (*STRIDES, 64, 128)),
    ],
)
def test_each_extra_level_doubles_the_stride(extra_level: str, strides: tuple[int, ...]) -> None:
    config = FPNConfig(out_channels=16, extra_level=extra_level)
    neck = FPN(config, CHANNELS, STRIDES)
    assert neck.out_strides == strides
    assert neck.out_channels == (16,) * len(strides)
    assert len(strides) == len(STRIDES) + config.num_extra_levels


def test_extra_convolutions_start_as_torchvisions() -> None:
    """Kaiming's uniform distribution with a = 1, which is bounded by sqrt(3 / fan_in), and biases of zero."""
    torch.manual_seed(0)
    neck = FPN(FPNConfig(out_channels=16, extra_level="conv_c5"), CHANNELS, STRIDES)
    for conv, fan_in in zip(neck.extra, (20 * 9, 16 * 9), strict=True):
        bound = (3 / fan_in) ** 0.5
        assert 0.95 * bound < conv.weight.abs().max() <= bound
        assert not conv.bias.any()


def test_a_pooled_level_has_no_weights() -> None:
    keys = FPN(FPNConfig(out_channels=16), CHANNELS, STRIDES).state_dict()
    assert not any(key.startswith("extra") for key in keys)


@pytest.mark.parametrize(("height", "larger"), [(88, 180), (33, 68), (5, 9)])
def test_an_exported_program_takes_the_same_rows(height: int, larger: int) -> None:
    class Enlarge(torch.nn.Module):
        def forward(self, x: torch.Tensor, finer: torch.Tensor) -> torch.Tensor:
            return enlarged(x, finer.shape[-2:])

    inputs = torch.randn(1, 2, height, height + 1), torch.zeros(1, 1, larger, larger + 3)
    program = torch.export.export(Enlarge(), inputs)
    assert "index_select" in str(program.graph)
    assert torch.equal(program.module()(*inputs), Enlarge()(*inputs))

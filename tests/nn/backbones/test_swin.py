"""Swin and ConvNeXt beside torchvision's classifiers; windows on maps of any size beside a slow reference."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from detkit.nn.backbones import build_backbone
from detkit.nn.backbones.convnext import ConvNeXtConfig
from detkit.nn.backbones.swin import SwinConfig, set_window


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("swin_t", 27_517_818),
        ("swin_s", 48_835_722),
        ("swin_b", 86_741_176),
        ("swin_v2_t", 27_581_034),
        ("swin_v2_s", 48_966_906),
        ("swin_v2_b", 86_903_800),
        ("convnext_tiny", 27_818_592),
        ("convnext_small", 49_453_152),
        ("convnext_base", 87_564_416),
        ("convnext_large", 196_227_264),
    ],
)
def test_counts(name: Any, count: int) -> None:
    """The features of torchvision's classifiers, and a norm (two numbers a channel) for each level."""
    with torch.device("meta"):
        config = ConvNeXtConfig(name=name) if name.startswith("convnext") else SwinConfig(name=name)
        backbone = build_backbone(config)
    assert sum(p.numel() for p in backbone.parameters()) == count + 2 * sum(backbone.out_channels)
    assert backbone.out_channels == tuple(backbone.out_channels[0] * 2**i for i in range(4))


@pytest.mark.parametrize(
    "config", [SwinConfig(), SwinConfig(name="swin_v2_t"), ConvNeXtConfig()], ids=lambda config: config.name
)
def test_levels_are_the_normalised_features_of_torchvision(config: Any) -> None:
    network: Any = get_model(config.name, weights=None).eval()
    backbone = build_backbone(config).eval()
    backbone.load_state_dict(
        {
            key: value
            for (key, _), value in zip(
                ((k, v) for k, v in backbone.state_dict().items() if not k.startswith("outputs.")),
                network.features.state_dict().values(),
                strict=True,
            )
        },
        strict=False,
    )
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        levels, x = backbone(images), images
        for number, level in enumerate(levels):
            x = network.features[2 * number + 1](network.features[2 * number](x))
            channels_last = x if x.shape[-1] == level.shape[1] else x.permute(0, 2, 3, 1)
            expected = F.layer_norm(channels_last, channels_last.shape[-1:], eps=1e-6)
            torch.testing.assert_close(level, expected.permute(0, 3, 1, 2), atol=1e-4, rtol=1e-4)


def slow_attention(module: Any, x: Tensor) -> Tensor:
    """Pixel by pixel, `[H, W, C]`: each attends to the pixels of its window that were next to it before the shift."""
    (window, _), (shift, _) = module.window_size, module.shift_size
    height, width, channels = x.shape
    padded = [math.ceil(side / window) * window for side in (height, width)]
    shifts = [0 if window >= side else shift for side in padded]
    grid = torch.zeros(*padded, channels)
    grid[:height, :width] = x
    bias = module.qkv.bias.clone()
    cosine = isinstance(module, ShiftedWindowAttentionV2)
    if cosine:
        bias[channels : 2 * channels] = 0
    q, k, v = (grid @ module.qkv.weight.T + bias).chunk(3, dim=-1)
    table = module.get_relative_position_bias()[0]  # [heads, window^2, window^2]

    def region(y: int, side: int) -> tuple[int, int]:
        """The window of a row after the shift, and whether the row was moved around the border."""
        moved = (y - shifts[side]) % padded[side]
        return moved // window, int(y < shifts[side])

    out = torch.zeros_like(grid)
    heads, size = module.num_heads, channels // module.num_heads
    cells = [(row, column) for row in range(padded[0]) for column in range(padded[1])]
    for y, x_ in cells:
        own = (region(y, 0), region(x_, 1))
        group = [(a, b) for a, b in cells if (region(a, 0), region(b, 1)) == own]

        def number(a: int, b: int) -> int:
            return (a - shifts[0]) % padded[0] % window * window + (b - shifts[1]) % padded[1] % window

        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            query, keys = q[y, x_, part], torch.stack([k[a, b, part] for a, b in group])
            if cosine:
                scores = (
                    F.cosine_similarity(query[None], keys) * module.logit_scale[head].clamp(max=math.log(100)).exp()
                )
            else:
                scores = keys @ query / size**0.5
            scores = scores.flatten() + torch.stack([table[head, number(y, x_), number(a, b)] for a, b in group])
            out[y, x_, part] = scores.softmax(0) @ torch.stack([v[a, b, part] for a, b in group])
    return (out @ module.proj.weight.T + module.proj.bias)[:height, :width]


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("size", [(5, 7), (3, 6), (4, 8)])
def test_windows_of_any_map(kind: type[nn.Module], size: tuple[int, int]) -> None:
    module: Any = kind(4, [3, 3], [1, 1], 2).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(*size, 4)
    with torch.no_grad():
        torch.testing.assert_close(module(x[None])[0], slow_attention(module, x), atol=1e-5, rtol=1e-4)


def test_odd_maps_are_padded_to_whole_patches() -> None:
    backbone = build_backbone(SwinConfig()).eval()
    with torch.no_grad():
        levels = backbone(torch.randn(1, 3, 36, 60))
    assert [tuple(level.shape[2:]) for level in levels] == [(9, 15), (5, 8), (3, 4), (2, 2)]


def biases(module: Any, window: int) -> Tensor:
    """`[heads, window, window]`: of the pixel in a window's corner by the distance to each other."""
    bias: Tensor = module.get_relative_position_bias()[0, :, 0]
    return bias.view(-1, window, window)


def test_another_window_keeps_what_a_distance_means_in_v2() -> None:
    module: Any = ShiftedWindowAttentionV2(4, [8, 8], [4, 4], 2)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    before = biases(module, 8)
    set_window(module, 12)
    torch.testing.assert_close(biases(module, 12)[:, :8, :8], before, atol=1e-5, rtol=1e-5)
    assert (module.window_size, module.shift_size) == ([12, 12], [6, 6])
    assert module(torch.randn(1, 20, 30, 4)).shape == (1, 20, 30, 4)


def test_another_window_interpolates_the_biases_of_v1() -> None:
    module: Any = ShiftedWindowAttention(4, [7, 7], [0, 0], 2)
    with torch.no_grad():
        module.relative_position_bias_table.copy_(
            torch.arange(13.0).repeat_interleave(13)[:, None] * torch.tensor([1.0, 2.0])
        )
    set_window(module, 12)
    assert module.relative_position_bias_table.shape == (23 * 23, 2)
    assert module.shift_size == [0, 0]
    table = module.relative_position_bias_table.view(23, 23, 2)
    torch.testing.assert_close(table[:, 0, 1], 2 * table[:, 0, 0])
    torch.testing.assert_close(table[11, :, 0], torch.full((23,), 6.0))  # the distance 0 stays in the middle
    assert (table[1:, 0, 0] - table[:-1, 0, 0] > 0)[2:-2].all()
    assert module(torch.randn(1, 20, 30, 4)).shape == (1, 20, 30, 4)


def test_blocks_are_left_out_more_and_more() -> None:
    with torch.device("meta"):
        backbone = build_backbone(SwinConfig(drop_path=0.2))
    rates = [module.p for module in backbone.modules() if type(module).__name__ == "StochasticDepth"]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])

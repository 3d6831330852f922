"""RT-DETR's neck: its position embedding cell by cell, which levels reach which outputs, and its deployed form."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from detkit.nn.necks.hybrid_encoder import HybridEncoder, HybridEncoderConfig, cell_pos_embed
from detkit.nn.reparam import RepConv, deploy
from tests.nn.test_reparam import with_statistics

CHANNELS, STRIDES = (8, 12, 16), (8, 16, 32)
SMALL = HybridEncoderConfig(width=16, heads=4, feedforward=32, expansion=0.5)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def levels() -> list[Tensor]:
    return [torch.randn(2, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]


def make_neck(config: HybridEncoderConfig = SMALL) -> HybridEncoder:
    neck = HybridEncoder(config, CHANNELS, STRIDES)
    with_statistics(neck)
    return neck


def test_every_cell_has_sines_and_cosines_of_its_row_and_then_of_its_column() -> None:
    """On a map of 2 x 3 cells with 8 channels: angular frequencies 1 and 1 / 100."""
    embed = cell_pos_embed(2, 3, 8, 10000.0)
    for row in range(2):
        for column in range(3):
            expected = [
                wave(number * frequency)
                for number in (row, column)
                for wave in (math.sin, math.cos)
                for frequency in (1, 0.01)
            ]
            assert embed[3 * row + column].tolist() == pytest.approx(expected)


@torch.no_grad()
def test_channels_strides_and_sizes() -> None:
    neck = make_neck()
    assert (neck.out_channels, neck.out_strides) == ((16, 16, 16), STRIDES)
    assert [tuple(level.shape) for level in neck(levels())] == [(2, 16, 64 // s, 96 // s) for s in STRIDES]


@torch.no_grad()
def test_cells_of_the_coarsest_level_alone_see_the_whole_picture() -> None:
    """A change in one corner of the coarsest level reaches the opposite corner of every output; one in the finest stays
    within the reach of convolutions."""
    neck = make_neck(SMALL.model_copy(update={"depth": 1 / 3}))
    features = [torch.randn(1, c, 512 // s, 512 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]
    before = neck(features)
    for number, reaches in ((2, True), (0, False)):
        changed = [level.clone() for level in features]
        changed[number][:, :, 0, 0] += 10
        differences = [(a - b)[:, :, -1, -1].abs().max() for a, b in zip(neck(changed), before, strict=True)]
        assert [bool(difference > 0) for difference in differences] == [reaches] * 3


@torch.no_grad()
def test_without_layers_nothing_is_attended_to() -> None:
    neck = make_neck(SMALL.model_copy(update={"layers": 0}))
    level = torch.randn(1, 16, 2, 3)
    assert torch.equal(neck.encode(level), level)


@torch.no_grad()
def test_the_deployed_form_computes_the_same() -> None:
    neck, features = make_neck(), levels()
    before = neck(features)
    after = deploy(neck)(features)
    assert not any(isinstance(module, RepConv) for module in neck.modules())
    for level, expected in zip(after, before, strict=True):
        torch.testing.assert_close(level, expected, atol=1e-4, rtol=1e-4)


def test_widths_that_heads_do_not_divide() -> None:
    with pytest.raises(ValidationError, match=r"width: expected a multiple of 4 and of heads \(8\), found 100"):
        HybridEncoderConfig(width=100)

"""SSD's coarser levels."""

from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from detkit.config import UserError
from detkit.nn.blocks import L2Norm
from detkit.nn.necks.extra_levels import ExtraLevels, ExtraLevelsConfig


def sizes(config: ExtraLevelsConfig, finest: int) -> list[tuple[int, int]]:
    """(channels, side) of every level behind conv4_3 and fc7."""
    neck = ExtraLevels(config, [512, 1024], [8, 16])
    levels = neck([torch.rand(1, 512, finest, finest), torch.rand(1, 1024, finest // 2, finest // 2)])
    assert [level.shape[1] for level in levels] == list(neck.out_channels)
    return [(level.shape[1], level.shape[2]) for level in levels]


def test_ssd300_has_the_maps_of_the_paper() -> None:
    assert sizes(ExtraLevelsConfig(), 38) == [(512, 38), (1024, 19), (512, 10), (256, 5), (256, 3), (256, 1)]


def test_ssd512_has_the_maps_of_the_paper() -> None:
    config = ExtraLevelsConfig(
        out_channels=(512, 256, 256, 256, 256), reduce=("stride", "stride", "stride", "stride", "valid4")
    )
    expected = [(512, 64), (1024, 32), (512, 16), (256, 8), (256, 4), (256, 2), (256, 1)]
    assert sizes(config, 64) == expected


@pytest.mark.parametrize(("reduce", "least"), [("valid", 3), ("valid4", 2)])
def test_a_map_that_is_too_small_is_named(reduce: Literal["valid", "valid4"], least: int) -> None:
    neck = ExtraLevels(ExtraLevelsConfig(out_channels=(8,), reduce=(reduce,), l2_norm=None), [4], [16])
    assert neck([torch.rand(1, 4, least, least)])[1].shape == (1, 8, 1, 1)
    with pytest.raises(UserError, match=f"{reduce} needs {least} x {least} cells, found {least} x {least - 1}"):
        neck([torch.rand(1, 4, least, least - 1)])


def test_the_finest_level_is_normalised_outside_the_trunk() -> None:
    """The norm over channels of every cell becomes the initial scale of 20; coarser levels build on the last."""
    neck = ExtraLevels(ExtraLevelsConfig(out_channels=(8,), reduce=("stride",)), [6, 4], [8, 16])
    fine, coarse = torch.rand(2, 6, 4, 4) + 0.1, torch.rand(2, 4, 2, 2)
    levels = neck([fine, coarse])
    torch.testing.assert_close((levels[0] ** 2).sum(dim=1).sqrt(), torch.full((2, 4, 4), 20.0))
    assert levels[1] is coarse
    torch.testing.assert_close(levels[2], neck.levels[0](coarse))
    plain = ExtraLevels(ExtraLevelsConfig(out_channels=(8,), reduce=("stride",), l2_norm=None), [6, 4], [8, 16])
    assert plain([fine, coarse])[0] is fine
    assert not [module for module in plain.modules() if isinstance(module, L2Norm)]


def test_depthwise_levels_are_torchvisions_ssdlite_blocks() -> None:
    """1x1 to half, 3x3 depthwise with stride 2, 1x1 to all: 6 * 4 + 4 * 9 + 4 * 8 weights, and batch norms."""
    config = ExtraLevelsConfig(
        out_channels=(8,), reduce=("stride",), l2_norm=None, norm=True, depthwise=True, act="relu6"
    )
    (layers,) = ExtraLevels(config, [6], [8]).levels
    convs = [module for module in layers.modules() if isinstance(module, nn.Conv2d)]
    assert [tuple(conv.weight.shape) for conv in convs] == [(4, 6, 1, 1), (4, 1, 3, 3), (8, 4, 1, 1)]
    assert [conv.bias for conv in convs] == [None] * 3
    assert convs[1].stride == (2, 2)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in layers.modules()) == 3


def test_every_level_says_how_it_reduces() -> None:
    with pytest.raises(ValidationError, match="reduce: expected 3 entries, as out_channels has, found 2"):
        ExtraLevelsConfig(out_channels=(8, 8, 8), reduce=("stride", "valid"))

"""LW-DETR's projector: the levels that it returns, and scales and levels that it cannot take."""

import re

import pytest
import torch
from pydantic import ValidationError

from detkit.nn.necks.c2f_projector import C2fProjector, C2fProjectorConfig


@pytest.mark.parametrize("norm", ["bn", "ln"])
@pytest.mark.parametrize("channels", [(8, 8), (514, 8)], ids=["narrow", "one wide level"])
@torch.no_grad()
def test_channels_strides_and_sizes(channels: tuple[int, ...], norm: str) -> None:
    config = C2fProjectorConfig.model_validate({"width": 6, "scales": (2, 1, 0.5), "blocks": 1, "norm": norm})
    neck = C2fProjector(config, channels, (16, 16))
    assert (neck.out_channels, neck.out_strides) == ((6, 6, 6), (8, 16, 32))
    levels = neck([torch.randn(2, count, 4, 6) for count in channels])
    assert [tuple(level.shape) for level in levels] == [(2, 6, 8, 12), (2, 6, 4, 6), (2, 6, 2, 3)]
    for level in levels:  # normalised over the channels of each cell
        torch.testing.assert_close(level.mean(dim=1), torch.zeros_like(level[:, 0]), atol=1e-5, rtol=0)


def test_scales_and_levels_that_it_cannot_take() -> None:
    for scales in ((), (0.5, 2.0), (4.0,), (1.0, 1.0)):
        message = f"scales: expected some of [2.0, 1.0, 0.5], in this order, found {list(scales)}"
        with pytest.raises(ValidationError, match=re.escape(message)):
            C2fProjectorConfig(scales=scales)
    with pytest.raises(ValueError, match=r"the projector joins levels of one stride, found \[8, 16\]"):
        C2fProjector(C2fProjectorConfig(), (4, 4), (8, 16))

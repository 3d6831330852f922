"""Where training programs put the weights in their checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import UserError
from detkit.weights.files import state_in

RAW, AVERAGE = {"weight": torch.zeros(1)}, {"weight": torch.ones(1)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (RAW, 0),
        ({"model": RAW, "last_epoch": 71}, 0),
        ({"state_dict": RAW}, 0),
        ({"ema": {"module": AVERAGE, "updates": 9}}, 1),
        ({"model": RAW, "ema": {"module": AVERAGE}}, 1),
        ({"model": RAW, "ema": None}, 0),
    ],
    ids=["alone", "model", "state_dict", "average alone", "average beside the model", "no average"],
)
def test_the_average_comes_before_the_last_weights(content: dict[str, Any], expected: float) -> None:
    assert state_in(content, Path("rtdetr.pth"), "RT-DETR")["weight"].item() == expected


def test_what_is_not_tensors_is_refused() -> None:
    with pytest.raises(UserError, match=r"rtdetr.pth: not a RT-DETR checkpoint: expected a dict of tensors"):
        state_in({"epoch": 3}, Path("rtdetr.pth"), "RT-DETR")

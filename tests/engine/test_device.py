"""The name of a device, and what is said of one that is not there."""

from __future__ import annotations

import re

import pytest
import torch

from detkit.config import UserError
from detkit.engine.distributed import process_group


@pytest.mark.parametrize("device", ["mps", "mps:0", "xpu"])
def test_devices_of_others_are_named_as_such(device: str) -> None:
    message = f"device: expected auto, cpu, cuda or cuda:N, found '{device}'; detkit runs on CPUs and CUDA alone"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"), process_group(device):
        pass


def test_an_unknown_device() -> None:
    with (
        pytest.raises(UserError, match=r"^device: expected auto, cpu, cuda or cuda:N, found 'gpu'$"),
        process_group("gpu"),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_without_cuda_no_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command may have `--device`, or `--set device=`, or neither."""
    for version, reason in ((None, "this torch is built without CUDA"), ("13.0", "torch finds no CUDA device")):
        monkeypatch.setattr(torch.version, "cuda", version)
        message = f"device: cuda was asked for, but {reason}; choose cpu, or auto for what there is"
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"), process_group("cuda"):
            pass

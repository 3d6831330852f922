"""Automatic mixed precision."""

from __future__ import annotations

from typing import Literal

import torch

AMP = Literal["off", "bf16", "fp16"]
DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: AMP) -> torch.autocast:
    """bf16 works on the CPU and on CUDA; fp16 is for CUDA and needs a gradient scaler."""
    return torch.autocast(device.type, dtype=DTYPES[amp] if amp != "off" else None, enabled=amp != "off")

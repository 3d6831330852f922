"""What only a CUDA device can tell; on the CPU every answer is None."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

# Operations a second of dense work, times 10^12, as NVIDIA states them: without tensor cores, and with them in TF32 and
# bf16. The names are how the driver calls the cards; the H100 is the SXM one.
PEAKS = {
    "H100 80GB HBM3": {"float32": 67, "tf32": 495, "bf16": 989},
    "H200": {"float32": 67, "tf32": 495, "bf16": 989},
    "A100": {"float32": 19.5, "tf32": 156, "bf16": 312},
}
SYNCHRONISING = "synchronizing CUDA operation"  # in torch's warning


class Card:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_cuda = device.type == "cuda"
        self.name = torch.cuda.get_device_name(device) if self.is_cuda else "CPU"

    def describe(self) -> dict[str, Any]:
        memory = torch.cuda.get_device_properties(self.device).total_memory // 2**20 if self.is_cuda else None
        cudnn = torch.backends.cudnn.version() if self.is_cuda else None
        return {"device": self.name, "memory_mib": memory, "cuda": torch.version.cuda, "cudnn": cudnn}

    def share(self, flops: int, seconds: float, peak: str) -> float | None:
        """Of the card's operations a second that a work of `flops` in `seconds` uses; None: the card is not listed."""
        peaks = next((peaks for name, peaks in PEAKS.items() if self.is_cuda and name in self.name), None)
        return flops / seconds / (peaks[peak] * 1e12) if peaks else None

    def peak_growth(self, work: Callable[[], object]) -> int | None:
        """MiB by which a run makes the allocated memory grow at its peak."""
        if not self.is_cuda:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) // 2**20

    def synchronisations(self, work: Callable[[], object]) -> int | None:
        """How often a run makes the host wait for the device, as far as torch notices."""
        if not self.is_cuda:
            return None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum(SYNCHRONISING in str(warning.message) for warning in caught)

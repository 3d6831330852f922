"""What the tools do for speed. Without `detkit/accelerate` they do nothing and give the same.

Imports nothing heavy: `prepare_process` must come before torch.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

AVAILABLE = find_spec("detkit.accelerate") is not None


def prepare_process() -> None:
    """See `detkit.accelerate.prepare_process`."""
    if AVAILABLE:
        from detkit.accelerate import prepare_process

        prepare_process()


def accelerate(network: nn.Module, *, constant: bool = False) -> None:
    """See `detkit.accelerate.accelerate`."""
    if AVAILABLE:
        from detkit.accelerate import accelerate

        accelerate(network, constant=constant)

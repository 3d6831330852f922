"""What the tools do for speed. Without `detkit/accelerate` they give the same.

Imports nothing heavy: `prepare_process` must come before torch.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

NetworkT = TypeVar("NetworkT", bound="nn.Module")
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


def deployed_copy(network: NetworkT) -> NetworkT:
    """A copy in which blocks that train as parallel layers are one, for evaluation only; `network` if it has none."""
    from detkit.nn.reparam import Reparameterised, deploy

    if any(isinstance(module, Reparameterised) for module in network.modules()):
        return deploy(copy.deepcopy(network))
    return network


def for_prediction(network: NetworkT) -> NetworkT:
    """What predicts as `network` does, and faster: its deployed form, whose names may be others, with faster modules.

    `network` itself is changed in nothing but its speed.
    """
    network = deployed_copy(network)
    accelerate(network, constant=True)
    return network

"""What networks return: frozen dataclasses of tensors that torch can take apart, move, export and put together."""

from __future__ import annotations

from typing import TypeVar

import torch

OutputsT = TypeVar("OutputsT")
ClassT = TypeVar("ClassT", bound=type)


def register_outputs(outputs: ClassT) -> ClassT:
    """Makes a frozen dataclass of tensors, of None and of other such dataclasses a node of torch's trees (pytree)."""
    name = f"{outputs.__module__}.{outputs.__qualname__}"
    torch.export.register_dataclass(outputs, serialized_type_name=name)
    return outputs

"""Files of public weights -> dicts of tensors. Reading a file never runs code in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from detkit.config import UserError

Change = Callable[[Any], Any]  # of the configuration of a public detector, before it is built
# where training programs put the weights, beside their own state; the average first (RT-DETR, D-FINE)
NESTED = (("ema", "module"), ("model",), ("state_dict",), ("model_state_dict",))


def unchanged(config: Any) -> Any:
    """The `Change` that is none."""
    return config


def read_state(file: Path, publisher: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a torch archive, where they may lie under one of `NESTED`.

    publisher  whose checkpoint it should be, for the UserError that is raised if it is not
    """
    return state_in(read_archive(file, publisher), file, publisher)


def read_archive(file: Path, publisher: str) -> object:
    """What a `.safetensors` file or a torch archive holds; see `read_state`."""
    try:
        return load_file(file) if file.suffix == ".safetensors" else _load_archive(file)
    except OSError as error:
        raise UserError(f"{file}: cannot read this checkpoint: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{file}: not a {publisher} checkpoint: {error}") from error
    except Exception as error:  # a garbled file can make the unpickler raise anything
        if classes := _pickled_classes(file):
            raise UserError(
                f"{file}: not a {publisher} checkpoint of tensors alone: it holds pickled classes ({classes}), which "
                "run code of their package, so nothing of it was read; where it is installed, save the tensors: "
                "torch.save(model.float().state_dict(), 'tensors.pt') with model = "
                f"torch.load('{file.name}', weights_only=False)['model'], and name that file"
            ) from error
        raise UserError(
            f"{file}: not a {publisher} checkpoint: the file is no archive of tensors, or is cut short"
        ) from error


def state_in(content: object, file: Path, publisher: str) -> dict[str, Tensor]:
    """The tensors in the content of `file`; see `read_state`."""
    state = content
    if isinstance(content, dict):
        state = next((part for path in NESTED if (part := _part_of(content, path)) is not None), content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: not a {publisher} checkpoint: expected a dict of tensors")
    return state


def _part_of(content: object, path: Sequence[str]) -> dict[str, Any] | None:
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else None


def _load_archive(file: Path) -> object:
    return torch.load(file, map_location="cpu", weights_only=True)


def _pickled_classes(file: Path) -> str:
    """Names of classes and functions that a torch archive brings beside tensors, at most two; "" if it is none."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # see above
        return ""
    return ", ".join([*names[:2], *["..."] * (len(names) > 2)])


def load_into(detector: nn.Module, state: Mapping[str, Tensor], source: object, name: str) -> None:
    """Raises UserError, which begins with `source`, unless the tensors are all those that `detector` has."""
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{source}: not the weights of {name}: {str(error).splitlines()[1].strip()}") from error

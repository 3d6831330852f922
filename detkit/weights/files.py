"""Files of public weights -> dicts of tensors. Reading a file never runs code in it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from detkit.config import UserError


def read_state(file: Path, publisher: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a torch archive, where they may lie under `model`.

    publisher  whose checkpoint it should be, for the UserError that is raised if it is not
    """
    try:
        state: object = load_file(file) if file.suffix == ".safetensors" else _load_archive(file)
    except OSError as error:
        raise UserError(f"{file}: cannot read this checkpoint: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{file}: not a {publisher} checkpoint: {error}") from error
    except Exception as error:  # a garbled file can make the unpickler raise anything
        raise UserError(
            f"{file}: not a {publisher} checkpoint: the file is no archive of tensors, or is cut short"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: not a {publisher} checkpoint: expected a dict of tensors")
    return state


def _load_archive(file: Path) -> object:
    return torch.load(file, map_location="cpu", weights_only=True)

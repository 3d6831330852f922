"""Checkpoints: tensors and plain values only, written aside and renamed, read with `weights_only=True`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from detkit.config import UserError
from detkit.files import replacing

FORMAT = "detkit checkpoint 1"


class CheckpointError(UserError):
    """A file that is not a checkpoint, or not one that fits here."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Raises UserError if the disk is full, or the like; the file that was there before stays."""
    with replacing(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved by `save_checkpoint`, on the CPU. No code in the file is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about pickles, which are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read this checkpoint: {error.strerror or error}") from error
    except Exception as error:  # the unpickler lets through whatever a garbled file makes it stumble over
        raise CheckpointError(
            f"{path}: not a detkit checkpoint: the file is no archive of tensors, or is cut short"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a detkit checkpoint: expected the mark {FORMAT!r}, found none")
    return state

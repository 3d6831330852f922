"""Checkpoints: tensors and plain values only, written aside and renamed, read with `weights_only=True`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detkit.config import UserError
from detkit.files import replacing
from detkit.structures import Categories

MARK = "detkit checkpoint "
FORMAT = f"{MARK}1"


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
    check_mark(state, path)
    return state  # type: ignore[no-any-return]


def is_marked(content: object) -> bool:
    """Whether it is what some version of detkit saved."""
    return isinstance(content, dict) and str(content.get("format")).startswith(MARK)


def check_mark(content: Any, path: Path) -> None:
    """Raises CheckpointError unless `save_checkpoint` of this version, or of an earlier one, wrote it."""
    if is_marked(content) and content["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: a newer detkit wrote it: expected the mark {FORMAT!r}, found {content['format']!r}; update detkit"
        )
    if not is_marked(content):
        found = repr(content["format"]) if isinstance(content, dict) and "format" in content else "none"
        raise CheckpointError(f"{path}: not a detkit checkpoint: expected the mark {FORMAT!r}, found {found}")


def check_parts(state: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError unless the parts from which a detector is built again are there, and are what they are."""
    for name, kind in (("config", str), ("model", dict), ("categories", dict)):
        if not isinstance(state.get(name), kind):
            found = f"{type(state[name]).__name__}" if name in state else "none"
            raise CheckpointError(
                f"{path}: has the mark of a detkit checkpoint but not its parts: expected {name!r}, a {kind.__name__}, "
                f"found {found}"
            )
    names, ids = (state["categories"].get(key) for key in ("names", "ids"))
    texts = isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
    if not texts or not isinstance(ids, list) or len(ids) != len(names):
        raise CheckpointError(
            f"{path}: 'categories' should have a list of names and one of as many ids, found {state['categories']!r}"
        )
    try:
        Categories.from_plain(state["categories"])
    except (LookupError, TypeError, ValueError) as error:
        keypoints = state["categories"]["keypoints"]
        raise CheckpointError(
            f"{path}: 'categories' should have keypoints with names, pairs, skeleton and sigmas, found {keypoints!r}"
        ) from error


def check_numbers(weights: Mapping[str, Any], source: object) -> None:
    """Raises CheckpointError, naming the first, if weights are nan: a detector of such weights finds nothing."""
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{source}: expected a tensor as {name!r} of its weights, found {tensor!r}")
        # A sum is three times as fast, and nan if one of its terms is.
        if tensor.is_floating_point() and bool(tensor.sum().isnan()) and bool(tensor.isnan().any()):
            raise CheckpointError(
                f"{source}: its weights are not numbers: {name} has {int(tensor.isnan().sum())} nan of "
                f"{tensor.numel()}; the training that wrote them went wrong, take an earlier checkpoint of it"
            )

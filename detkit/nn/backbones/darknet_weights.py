"""Darknet's `.weights` files: a header of integers, then every parameter as float32, layer after layer.

The header is major, minor and revision as int32, then the number of images seen: int64 from version 0.2 on, else int32.
A major or minor above 1000 marks files whose connected weights are transposed, `[in, out]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detkit.config import UserError
from detkit.nn.blocks import ConvBlock, LocallyConnected

MAX_VERSION = 100_000  # darknet's numbers are far below it, text or an archive read as a header is far above


@torch.no_grad()
def load_darknet_weights(path: Path, layers: Sequence[nn.Module], *, allow_rest: bool = False) -> None:
    """Copies the values of a darknet file into `layers`, in order.

    Raises UserError if the file cannot be read, has another format, or holds too few or too many values.

    layers      ConvBlock or nn.Conv2d with a bias (`convolutional`), LocallyConnected (`local`), nn.Linear
                (`connected`), nn.Sequential(nn.Linear without bias, nn.BatchNorm1d) (`connected` with batch norm)
    allow_rest  ignore the values after the last of `layers`: to load a backbone from the file of a whole detector
    """
    floats, odd_bytes, transposed = _read(path)
    tensors = [list(_tensors(layer, transposed)) for layer in layers]
    total = sum(tensor.numel() for parts in tensors for tensor in parts)
    start = 0
    for number, (layer, parts) in enumerate(zip(layers, tensors, strict=True), start=1):
        end = start + sum(part.numel() for part in parts)
        if end > len(floats):
            raise UserError(
                f"{path}: cut short at {_name(layer)}, number {number} of {len(layers)} layers with weights: "
                f"{total - len(floats)} of {total} floats are missing; "
                "download the file again, or choose the network that it belongs to"
            )
        values = torch.from_numpy(floats[start:end])
        if not values.isfinite().all():
            raise UserError(
                f"{path}: nan or infinity in {_name(layer)}, number {number} of {len(layers)} layers with weights; "
                "use weights from before its training diverged"
            )
        for part, piece in zip(parts, torch.split(values, [part.numel() for part in parts]), strict=True):
            part.copy_(piece.view(part.shape))
        start = end
    if (start < len(floats) or odd_bytes) and not allow_rest:
        rest = f"{len(floats) - start} floats" + (f" and {odd_bytes} bytes" if odd_bytes else "")
        raise UserError(
            f"{path}: too long: {rest} are left over after the {total} floats of {len(layers)} layers; "
            "it belongs to another network"
        )


def _read(path: Path) -> tuple[np.ndarray, int, bool]:
    """All floats of a file, the number of bytes after the last whole float, and whether its connected weights are
    transposed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read these weights: {error.strerror}") from error
    if len(content) < 16:
        raise UserError(f"{path}: not a darknet weights file: expected a header of 16 bytes, found {len(content)}")
    major, minor, _ = np.frombuffer(content, "<i4", 3).tolist()
    if not (0 <= major < MAX_VERSION and 0 <= minor < MAX_VERSION):
        raise UserError(
            f"{path}: not a darknet weights file: its header gives version {major}.{minor}, expected 0.1 or 0.2"
        )
    transposed = major > 1000 or minor > 1000
    header = 20 if major * 10 + minor >= 2 and major < 1000 and minor < 1000 else 16
    count, odd_bytes = divmod(max(0, len(content) - header), 4)
    floats = np.frombuffer(content, "<f4", count, header) if count else np.empty(0)
    return floats.astype(np.float32), odd_bytes, transposed  # a copy, because torch needs writable memory


def _tensors(layer: nn.Module, transposed: bool) -> Iterator[Tensor]:
    """The parameters and statistics of a layer in the order of the file: the bias, of the layer or its batch norm, is
    first."""
    match list(layer) if isinstance(layer, nn.Sequential) else [layer]:
        case [ConvBlock(norm=nn.BatchNorm2d() as norm) as block]:
            yield from _bias_and_statistics(norm)
            yield block.conv.weight
        case [ConvBlock(conv=nn.Conv2d(bias=Tensor() as bias)) as block]:
            yield bias
            yield block.conv.weight
        case [LocallyConnected() as local]:
            yield local.bias
            yield local.weight
        case [nn.Conv2d(bias=Tensor() as bias) as conv]:
            yield bias
            yield conv.weight
        case [nn.Linear(bias=Tensor() as bias) as linear]:
            yield bias
            yield linear.weight.t() if transposed else linear.weight
        case [nn.Linear() as linear, nn.BatchNorm1d() as norm]:
            bias, *statistics = _bias_and_statistics(norm)
            yield bias
            yield linear.weight.t() if transposed else linear.weight
            yield from statistics
        case _:
            raise ValueError(f"layers: expected convolutional, local or connected layers, got {_name(layer)}")


def _bias_and_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.bias, norm.weight, norm.running_mean, norm.running_var


def _name(layer: nn.Module) -> str:
    return type(layer).__name__

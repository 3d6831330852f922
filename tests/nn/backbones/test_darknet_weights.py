"""Files of a header and the numbers 0, 1, 2, ..., so that the value of a parameter is its position in the file."""

import re
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detkit.config import UserError
from detkit.nn.backbones.darknet_weights import load_darknet_weights
from detkit.nn.blocks import ConvBlock, LocallyConnected

NEW, OLD, TRANSPOSED = (0, 2, 0), (0, 1, 0), (1001, 0, 0)


def write(path: Path, count: int, version: tuple[int, int, int] = NEW) -> Path:
    """A file with the floats 0, 1, 2, ..., `count` of them."""
    seen = struct.pack("<q" if version == NEW else "<i", 3_200_000)
    path.write_bytes(struct.pack("<3i", *version) + seen + struct.pack(f"<{count}f", *range(count)))
    return path


def counted(start: int, *shape: int) -> Tensor:
    count = int(torch.tensor(shape).prod())
    return torch.arange(start, start + count, dtype=torch.float32).view(shape)


def connected(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs))


@pytest.mark.parametrize("version", [NEW, OLD])
def test_convolutions(tmp_path: Path, version: tuple[int, int, int]) -> None:
    """With batch norm: beta, gamma, mean, variance, weights; without: bias, weights; `seen` has 8 or 4 bytes."""
    block, plain, bare = ConvBlock(4, 6, 3, groups=2), ConvBlock(6, 2, 1, norm=False), nn.Conv2d(2, 3, 1)
    load_darknet_weights(write(tmp_path / "a.weights", 132 + 14 + 9, version), [block, plain, bare])
    assert torch.equal(block.norm.bias, counted(0, 6))
    assert torch.equal(block.norm.weight, counted(6, 6))
    assert torch.equal(block.norm.running_mean, counted(12, 6))
    assert torch.equal(block.norm.running_var, counted(18, 6))
    assert torch.equal(block.conv.weight, counted(24, 6, 2, 3, 3))
    assert torch.equal(plain.conv.bias, counted(132, 2))
    assert torch.equal(plain.conv.weight, counted(134, 2, 6, 1, 1))
    assert torch.equal(bare.bias, counted(146, 3))
    assert torch.equal(bare.weight, counted(149, 3, 2, 1, 1))
    assert block.conv.weight.requires_grad


def test_local_and_connected(tmp_path: Path) -> None:
    local, linear, normed = LocallyConnected(2, 3, 3, (2, 2)), nn.Linear(4, 5), connected(5, 2)
    load_darknet_weights(write(tmp_path / "a.weights", 12 + 216 + 25 + 18), [local, linear, normed])
    assert torch.equal(local.bias, counted(0, 3, 2, 2))
    assert torch.equal(local.weight, counted(12, 4, 3, 18))
    assert torch.equal(linear.bias, counted(228, 5))
    assert torch.equal(linear.weight, counted(233, 5, 4))
    assert torch.equal(normed[1].bias, counted(253, 2))  # then the weights, then the rest of the batch norm
    assert torch.equal(normed[0].weight, counted(255, 2, 5))
    assert torch.equal(normed[1].weight, counted(265, 2))
    assert torch.equal(normed[1].running_mean, counted(267, 2))
    assert torch.equal(normed[1].running_var, counted(269, 2))


def test_connected_weights_of_some_files_are_transposed(tmp_path: Path) -> None:
    linear, normed = nn.Linear(4, 5), connected(5, 2)
    load_darknet_weights(write(tmp_path / "a.weights", 25 + 18, TRANSPOSED), [linear, normed])
    assert torch.equal(linear.weight, counted(5, 4, 5).t())
    assert torch.equal(normed[0].weight, counted(27, 5, 2).t())


def test_a_file_that_goes_on(tmp_path: Path) -> None:
    path, layer = write(tmp_path / "darknet53.conv.74", 14 + 7), ConvBlock(6, 2, 1, norm=False)
    with pytest.raises(UserError, match=f"^{path}: too long: 7 floats are left over after the 14 floats of 1 layers; "):
        load_darknet_weights(path, [layer])
    load_darknet_weights(path, [layer], allow_rest=True)
    assert torch.equal(layer.conv.weight, counted(2, 2, 6, 1, 1))


@pytest.mark.parametrize(("keep", "number", "missing"), [(0, 1, 28), (13, 1, 15), (14, 2, 14), (27, 2, 1)])
@pytest.mark.parametrize("odd", [b"", b"\0\0\0"])
def test_a_file_that_is_cut_short(tmp_path: Path, keep: int, number: int, missing: int, odd: bytes) -> None:
    path = write(tmp_path / "a.weights", keep)
    path.write_bytes(path.read_bytes() + odd)
    layers = [ConvBlock(6, 2, 1, norm=False), ConvBlock(6, 2, 1, norm=False)]
    where = f"cut short at ConvBlock, number {number} of 2 layers with weights"
    with pytest.raises(UserError, match=f"^{path}: {where}: {missing} of 28 floats are missing; [^\n]*$"):
        load_darknet_weights(path, layers, allow_rest=True)


def test_bytes_after_the_last_float(tmp_path: Path) -> None:
    path = write(tmp_path / "a.weights", 14)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="too long: 0 floats and 1 bytes are left over"):
        load_darknet_weights(path, [ConvBlock(6, 2, 1, norm=False)])


@pytest.mark.parametrize("content", [b"", b"hello", b"<!DOCTYPE html><html>", b"PK\x03\x04" + bytes(40)])
def test_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.weights"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: not a darknet weights file: [^\n]*$"):
        load_darknet_weights(path, [ConvBlock(6, 2, 1)])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("a.weights: cannot read these weights: No such file or directory")):
        load_darknet_weights(tmp_path / "a.weights", [])
    with pytest.raises(UserError, match="cannot read these weights: Is a directory"):
        load_darknet_weights(tmp_path, [])


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.weights", 14)
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(UserError, match="nan or infinity in ConvBlock, number 1 of 1 layers"):
        load_darknet_weights(path, [ConvBlock(6, 2, 1, norm=False)])


def test_a_layer_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected convolutional, local or connected layers, got LayerNorm"):
        load_darknet_weights(write(tmp_path / "a.weights", 4), [nn.LayerNorm(2)])

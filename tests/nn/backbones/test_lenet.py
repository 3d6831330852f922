"""LeNet-5 against the words and the numbers of its paper."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from detkit.nn.backbones import build_backbone
from detkit.nn.backbones.lenet import LeNetConfig, ScaledTanh, Subsample, lenet_trunk

PUBLISHED = LeNetConfig(connections="sparse", strides=(2, 4))


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_number_of_parameters_of_1998() -> None:
    trunk = lenet_trunk(PUBLISHED, in_channels=1)
    assert {name: count(block) for name, block in trunk.items()} == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32}
    backbone = build_backbone(PUBLISHED)
    assert count(backbone.c1) == 456  # three channels in place of one
    assert count(backbone) == 456 + 12 + 1516 + 32


@torch.no_grad()
def test_each_map_of_c3_reads_the_maps_of_table_i() -> None:
    """'The first six take inputs from every contiguous subset of three, the next six from every contiguous subset of
    four, the next three from some discontinuous subsets of four, the last from all'; Table I has ten in each row."""
    conv = lenet_trunk(PUBLISHED, in_channels=1)["c3"][0]
    image = torch.zeros(1, 6, 5, 5)
    at_rest = conv(image)
    sees = []
    for channel in range(6):
        image.zero_()[0, channel] = torch.rand(5, 5, generator=torch.Generator().manual_seed(channel)) + 1
        sees.append((conv(image) != at_rest).flatten())
    seen = [tuple(torch.stack(sees)[:, m].nonzero().flatten().tolist()) for m in range(16)]
    in_a_row = [{tuple(sorted((start + i) % 6 for i in range(length))) for start in range(6)} for length in (3, 4)]
    assert seen[0] == (0, 1, 2)
    assert len(set(seen)) == 16
    assert set(seen[:6]) == in_a_row[0]
    assert set(seen[6:12]) == in_a_row[1]
    assert {len(maps) for maps in seen[12:15]} == {4}
    assert not set(seen[12:15]) & in_a_row[1]
    assert seen[15] == (0, 1, 2, 3, 4, 5)
    assert sum(map(len, seen)) == 60
    assert [sum(channel in maps for maps in seen) for channel in range(6)] == [10] * 6


@torch.no_grad()
def test_a_sparse_convolution_is_one_convolution_for_each_map() -> None:
    conv = lenet_trunk(PUBLISHED, in_channels=1)["c3"][0]
    image = torch.randn(2, 6, 14, 14, generator=torch.Generator().manual_seed(0))
    at = 0
    for number, seen in enumerate([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [0, 4, 5], [0, 1, 5], [0, 1, 2, 3]]):
        kernels = conv.weight[at : at + len(seen)]
        at += len(seen)
        expected = nn.functional.conv2d(image[:, seen], kernels[None], conv.bias[number, None])
        torch.testing.assert_close(conv(image)[:, number, None], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_subsampling_by_hand() -> None:
    layer = Subsample(2)
    image = torch.tensor([[1.0, 2, 5, 0], [3, 4, 0, 1]]).expand(1, 2, 2, 4)
    assert torch.equal(layer(image)[0, 0], torch.tensor([[2.5, 1.5]]))  # starts as the mean
    layer.gain.copy_(torch.tensor([0.5, -1.0]).view(2, 1, 1))
    layer.bias.copy_(torch.tensor([0.0, 3.0]).view(2, 1, 1))
    assert torch.equal(layer(image)[0], torch.tensor([[[5.0, 3.0]], [[-7.0, -3.0]]]))


def test_the_squashing_function_by_hand() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 100.0])
    torch.testing.assert_close(ScaledTanh()(x), torch.tensor([-1.0, 0.0, 1.0, 1.7159]), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        PUBLISHED,
        LeNetConfig(strides=(2, 4)),
        LeNetConfig(strides=(2, 4), widths=(32, 64), activation="relu", pool="max"),
        LeNetConfig(strides=(2, 4), widths=(5, 7), pool="subsample"),
    ],
    ids=["sparse", "dense", "wide", "subsample"],
)
def test_maps_of_32_pixels(config: LeNetConfig) -> None:
    backbone = build_backbone(config)
    assert (backbone.out_channels, backbone.out_strides) == (config.widths, (2, 4))
    s2, s4 = backbone(torch.rand(2, 3, 32, 32))
    assert (s2.shape, s4.shape) == ((2, config.widths[0], 14, 14), (2, config.widths[1], 5, 5))


@torch.no_grad()
def test_a_level_is_what_the_pooling_gives() -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for config in (LeNetConfig(strides=(2,)), LeNetConfig(strides=(2,), pool="max", activation="relu")):
        backbone = build_backbone(config)
        conv = backbone.c1[0](image)
        x = conv.relu() if config.activation == "relu" else 1.7159 * torch.tanh(2 / 3 * conv)
        x = x.unflatten(2, (14, 2)).unflatten(4, (14, 2))
        expected = x.amax((3, 5)) if config.pool == "max" else x.mean((3, 5))
        torch.testing.assert_close(backbone(image)[0], expected)


@torch.no_grad()
def test_receptive_field_of_a_cell_of_s4() -> None:
    """Cell i of S4 reads 16 pixels around 4i + 8: C3 reads 5 cells of S2, which are 14 pixels, and pooling adds 2."""
    backbone = build_backbone(LeNetConfig())
    image = torch.zeros(1, 3, 32, 32)
    at_rest = backbone(image)[0][0, 0]
    reached = []
    for column in range(32):
        image.zero_()[..., column] = 1
        reached.append((backbone(image)[0][0, 0] - at_rest).abs().amax(0) > 1e-7)
    for i in range(5):
        columns = torch.stack(reached)[:, i].nonzero().flatten().tolist()
        assert columns == list(range(4 * i, 4 * i + 16))


def test_every_connection_of_the_published_net_learns() -> None:
    backbone = build_backbone(PUBLISHED)
    backbone(torch.rand(2, 3, 32, 32))[-1].square().sum().backward()
    assert all(parameter.grad.ne(0).all() for parameter in backbone.parameters())


def test_impossible_widths_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"the sparse connections are those of \[6, 16\], found \[32, 64\]"):
        LeNetConfig(connections="sparse", widths=(32, 64))
    with pytest.raises(ValidationError, match=r"expected two widths of at least 1, found \[0, 16\]"):
        LeNetConfig(widths=(0, 16))
    with pytest.raises(ValidationError, match="weights"):
        LeNetConfig.model_validate({"weights": "IMAGENET1K_V1"})


def test_starting_values_are_of_the_inputs_that_a_map_has() -> None:
    torch.manual_seed(0)
    conv = lenet_trunk(PUBLISHED, in_channels=1)["c3"][0]
    per_map = [3] * 6 + [4] * 9 + [6]  # input maps
    for kernels, inputs in zip(conv.weight.split(per_map), per_map, strict=True):
        bound = (25 * inputs) ** -0.5
        assert 0.9 * bound < kernels.abs().max() <= bound

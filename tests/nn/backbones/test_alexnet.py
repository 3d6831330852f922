"""AlexNet equals torchvision's, CaffeNet has the layers of Caffe's."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision import models

from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.alexnet import AlexNetConfig, CaffeNetConfig, caffenet_trunk

STRIDES = (4, 8, 16, 16, 16)


@torch.no_grad()
def test_alexnet_is_torchvisions() -> None:
    reference = models.alexnet().eval()
    backbone = build_backbone(AlexNetConfig(strides=STRIDES)).eval()
    state = {key.removeprefix("features."): value for key, value in reference.state_dict().items()}
    backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})
    images = torch.randn(2, 3, 96, 127, generator=torch.Generator().manual_seed(0))
    levels = backbone(images)
    for level, last in zip(levels, (1, 4, 7, 9, 11), strict=True):  # the five ReLUs
        torch.testing.assert_close(level, reference.features[: last + 1](images))
    torch.testing.assert_close(reference.features[12](levels[-1]), reference.features(images))


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (AlexNetConfig(strides=STRIDES), (64, 192, 384, 256, 256)),
        (CaffeNetConfig(strides=STRIDES), (96, 256, 384, 384, 256)),
        (CaffeNetConfig(strides=STRIDES, padding=True), (96, 256, 384, 384, 256)),
    ],
    ids=["alexnet", "caffenet", "padded"],
)
def test_widths_and_strides(config: BackboneConfig, channels: tuple[int, ...]) -> None:
    backbone = build_backbone(config)
    assert (backbone.out_channels, backbone.out_strides) == (channels, STRIDES)
    small, large = backbone(torch.zeros(1, 3, 256, 320)), backbone(torch.zeros(1, 3, 256 + 64, 320 + 64))
    for before, after, width, stride in zip(small, large, channels, backbone.out_strides, strict=True):
        assert before.shape[1] == width
        assert [b - a for a, b in zip(before.shape[2:], after.shape[2:], strict=True)] == [64 // stride] * 2
    backbone = build_backbone(type(config)())
    assert (backbone.out_channels, backbone.out_strides) == ((256,), (16,))
    assert isinstance(backbone.get_submodule(backbone.block_names[-1]), nn.ReLU)  # pool5 is left out


@torch.no_grad()
def test_map_sizes_of_a_crop_of_227() -> None:
    sizes = {}
    x = torch.zeros(1, 3, 227, 227)
    for name, block in caffenet_trunk().items():
        x = block(x)
        sizes[name] = x.shape[2:]
    assert [sizes[f"conv{number}"] for number in range(1, 6)] == [(55, 55), (27, 27), (13, 13), (13, 13), (13, 13)]
    assert [sizes[f"pool{number}"] for number in (1, 2, 5)] == [(27, 27), (13, 13), (6, 6)]


@torch.no_grad()
def test_caffe_rounds_the_size_of_a_pooled_map_up() -> None:
    """231 pixels: conv1 gives 56 (Caffe rounds convolutions down), pool1 28 rather than 27, pool2 14 rather than 13."""
    levels = build_backbone(CaffeNetConfig(strides=(4, 8, 16)))(torch.zeros(1, 3, 231, 231))
    assert [level.shape[2] for level in levels] == [56, 28, 14]


@torch.no_grad()
@pytest.mark.parametrize("config", [CaffeNetConfig(padding=True), AlexNetConfig(padding=True, frozen_stages=0)])
def test_padding_centres_cell_i_at_i_times_the_stride(config: CaffeNetConfig | AlexNetConfig) -> None:
    """Fast R-CNN's: cell i of relu5 is centred on pixel 16 i, so that a region's coordinates over 16 are the map's."""
    images = torch.zeros(321, 3, 1, 321)
    images.diagonal(dim1=0, dim2=3).fill_(torch.nan)  # column i of image i; every output that reads it is nan
    level = build_backbone(config)(images)[0]
    assert level.shape == (321, 256, 1, 21)
    reads = level[:, 0, 0, 10].isnan().nonzero().flatten()
    assert (reads[0] + reads[-1]) / 2 == 160


@torch.no_grad()
def test_two_groups_equal_two_convolutions_on_half_of_the_channels() -> None:
    trunk = caffenet_trunk()
    for name, width in (("conv2", 96), ("conv4", 384), ("conv5", 384)):
        conv = trunk[name]
        x = torch.randn(1, width, 13, 13, generator=torch.Generator().manual_seed(0))
        half, out = width // 2, conv.out_channels // 2
        left = nn.functional.conv2d(x[:, :half], conv.weight[:out], conv.bias[:out], padding=conv.padding)
        right = nn.functional.conv2d(x[:, half:], conv.weight[out:], conv.bias[out:], padding=conv.padding)
        torch.testing.assert_close(conv(x), torch.cat([left, right], 1), rtol=1e-4, atol=1e-5)
    assert [trunk[f"conv{number}"].groups for number in range(1, 6)] == [1, 2, 1, 2, 2]


def slow_lrn(x: Tensor) -> Tensor:
    """Caffe's: x / (1 + 1e-4 / 5 * sum of squares over 5 channels) ** 0.75, with nothing beyond the ends."""
    out = torch.empty_like(x)
    for channel in range(x.shape[1]):
        near = x[:, max(0, channel - 2) : channel + 3]
        out[:, channel] = x[:, channel] / (1 + 1e-4 / 5 * near.square().sum(1)) ** 0.75
    return out


@torch.no_grad()
def test_pooling_comes_before_the_normalisation() -> None:
    trunk = caffenet_trunk()
    assert [*trunk] == [
        *("conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2"),
        *("conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"),
    ]
    x = 200 * torch.rand(2, 7, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trunk["norm1"](x), slow_lrn(x))
    torch.testing.assert_close(trunk["norm2"](x), slow_lrn(x))


@torch.no_grad()
@pytest.mark.parametrize("config", [AlexNetConfig(), CaffeNetConfig()], ids=["alexnet", "caffenet"])
def test_a_stride_is_the_last_stage_that_has_it(config: AlexNetConfig | CaffeNetConfig) -> None:
    """relu3, relu4 and relu5 all have stride 16."""
    image = torch.rand(1, 3, 67, 67, generator=torch.Generator().manual_seed(0))
    levels = {}
    for strides in ((16,), (16, 16), (16, 16, 16)):
        torch.manual_seed(0)
        levels[len(strides)] = build_backbone(config.model_copy(update={"strides": strides}))(image)
    assert [level.shape[1] for level in levels[3]] == [384, 384 if config.name == "caffenet" else 256, 256]
    assert torch.equal(levels[1][0], levels[3][2])
    assert torch.equal(levels[2][0], levels[3][1])


def test_unknown_weights_and_strides_are_refused() -> None:
    with pytest.raises(ValidationError, match="'IMAGENET1K_V9' is not a torchvision weights entry of alexnet; known: "):
        AlexNetConfig(weights="IMAGENET1K_V9")
    with pytest.raises(ValidationError, match="weights"):
        CaffeNetConfig.model_validate({"weights": "IMAGENET1K_V1"})
    for kind, name in ((AlexNetConfig, "alexnet"), (CaffeNetConfig, "caffenet")):
        with pytest.raises(ValidationError, match=rf"strides: {name} has 4, 8, 16, 16, 16, found \[16, 8\]"):
            kind(strides=(16, 8))

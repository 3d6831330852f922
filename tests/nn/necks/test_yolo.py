"""The necks of YOLOv2 and YOLOv3: their layers, and the order in which channels are concatenated."""

import pytest
import torch
from torch import Tensor, nn

from detkit.nn.blocks import SPP, ConvBlock
from detkit.nn.necks.yolo import Passthrough, YOLONeck, YOLONeckConfig

STRIDES = (8, 16, 32)


def levels(channels: tuple[int, ...], strides: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, 64 // s, 96 // s, generator=generator) for c, s in zip(channels, strides, strict=True)]


def inputs_of(block: nn.Module) -> list[Tensor]:
    """A list that gets the input of the block each time it runs."""
    inputs: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
    return inputs


@pytest.mark.parametrize(
    ("name", "channels", "strides", "expected"),
    [
        ("yolov3", (256, 512, 1024), STRIDES, (256, 512, 1024)),  # Darknet-53 and yolov3.cfg
        ("yolov3", (128, 256, 512), STRIDES, (128, 256, 512)),  # ResNet-18
        ("yolov3_tiny", (256, 1024), (16, 32), (256, 512)),  # yolov3-tiny.cfg
        ("yolov3_tiny", (256, 512), (16, 32), (256, 256)),
    ],
)
@torch.no_grad()
def test_channels_strides_and_sizes(
    name: str, channels: tuple[int, ...], strides: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    neck = YOLONeck(YOLONeckConfig(name=name), channels, strides).eval()
    assert (neck.out_channels, neck.out_strides) == (expected, strides)
    actual = [tuple(level.shape) for level in neck(levels(channels, strides))]
    assert actual == [(2, c, 64 // s, 96 // s) for c, s in zip(expected, strides, strict=True)]


def shapes(module: nn.Module) -> list[tuple[int, int, int]]:
    """(inputs, outputs, kernel) of each convolution in order."""
    convs = [block.conv for block in module.modules() if isinstance(block, ConvBlock)]
    return [(conv.in_channels, conv.out_channels, conv.kernel_size[0]) for conv in convs]


def test_layers_of_yolov3() -> None:
    """yolov3.cfg, from the end of Darknet-53 on: layers 75 to 80, 84, 87 to 92, 96, 99 to 104."""
    neck = YOLONeck(YOLONeckConfig(), (256, 512, 1024), STRIDES)
    assert [shapes(body) for body in neck.body] == [
        [(1024, 512, 1), (512, 1024, 3), (1024, 512, 1), (512, 1024, 3), (1024, 512, 1)],
        [(768, 256, 1), (256, 512, 3), (512, 256, 1), (256, 512, 3), (512, 256, 1)],
        [(384, 128, 1), (128, 256, 3), (256, 128, 1), (128, 256, 3), (256, 128, 1)],
    ]
    assert [shapes(block) for block in neck.output] == [[(512, 1024, 3)], [(256, 512, 3)], [(128, 256, 3)]]
    assert [shapes(block) for block in neck.lateral] == [[(512, 256, 1)], [(256, 128, 1)]]
    assert not any(isinstance(module, SPP) for module in neck.modules())


def test_layers_of_yolov3_spp() -> None:
    """yolov3-spp.cfg: the pools after three convolutions of the coarsest level, their four parts joined by one more."""
    neck = YOLONeck(YOLONeckConfig(spp=True), (256, 512, 1024), STRIDES)
    assert shapes(neck.body[0]) == [
        (1024, 512, 1), (512, 1024, 3), (1024, 512, 1), (2048, 512, 1), (512, 1024, 3), (1024, 512, 1),
    ]  # fmt: skip
    assert isinstance(neck.body[0][3], SPP)
    assert len(shapes(neck.body[1])) == len(shapes(neck.body[2])) == 5


def test_layers_of_yolov3_tiny() -> None:
    """yolov3-tiny.cfg, layers 13, 14, 18 and 21."""
    neck = YOLONeck(YOLONeckConfig(name="yolov3_tiny"), (256, 1024), (16, 32))
    assert shapes(neck.body) == [(1024, 256, 1)]
    assert shapes(neck.output) == [(256, 512, 3), (384, 256, 3)]
    assert shapes(neck.lateral) == [(256, 128, 1)]


@pytest.mark.parametrize("name", ["yolov3", "yolov3_tiny"])
@torch.no_grad()
def test_the_upsampled_level_is_concatenated_first(name: str) -> None:
    channels = (16, 32, 64)[-2 if name == "yolov3_tiny" else 0 :]
    strides = STRIDES[-len(channels) :]
    neck = YOLONeck(YOLONeckConfig(name=name), channels, strides).eval()
    joined = [inputs_of(body) for body in neck.body]
    into_lateral, into_output = ([inputs_of(block) for block in blocks] for blocks in (neck.lateral, neck.output))
    features = levels(channels, strides)
    outputs = neck(features)
    assert torch.equal(joined[0][0], features[-1])
    for depth in range(1, len(channels)):
        lateral = neck.lateral[depth - 1](into_lateral[depth - 1][0])
        level = features[-1 - depth]
        upsampled = lateral.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        assert torch.equal(joined[depth][0], torch.cat([upsampled, level], dim=1))
        # the upsampled features are those that the coarser level's predictions are made from
        assert torch.equal(into_lateral[depth - 1][0], into_output[depth - 1][0])
    for depth, output in enumerate(neck.output):
        assert torch.equal(outputs[-1 - depth], output(into_output[depth][0]))


def test_layers_of_the_passthrough() -> None:
    """yolov2.cfg: two of 1024 on the coarse level, 64 of the fine one, which Reorg makes 256; 1280 to 1024."""
    neck = Passthrough((512, 1024), (16, 32))
    assert shapes(neck.coarse) == [(1024, 1024, 3), (1024, 1024, 3)]
    assert shapes(neck.fine) == [(512, 64, 1)]
    assert shapes(neck.merge) == [(1280, 1024, 3)]


@pytest.mark.parametrize("channels", [(512, 1024), (128, 256)])  # Darknet-19, ResNet-18
@torch.no_grad()
def test_the_fine_level_is_concatenated_first(channels: tuple[int, int]) -> None:
    fine, coarse = channels
    neck = Passthrough(channels, (16, 32)).eval()
    joined, folded = inputs_of(neck.merge), inputs_of(neck.fine[1])
    features = levels(channels, (16, 32))
    (level,) = neck(features)
    assert (neck.out_channels, neck.out_strides) == ((coarse,), (32,))
    assert level.shape == (2, coarse, 2, 3)
    assert joined[0].shape[1] == fine // 2 + coarse
    assert torch.equal(joined[0][:, : fine // 2], neck.fine[1](folded[0]))
    assert torch.equal(joined[0][:, fine // 2 :], neck.coarse(features[1]))

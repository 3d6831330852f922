"""ResNet-D (He et al., arXiv 1812.01187, section 4.2) as PaddleDetection and RT-DETR (arXiv 2304.08069) have it
("ResNet-vd"): three 3x3 convolutions as the stem, and shortcuts that average before they project.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, cast

from pydantic import Field
from torch import Tensor, nn

from detkit.nn.backbones.staged import Stage, StagedBackbone, StagedConfig, download, norm_layer, split

BLOCKS = {
    "resnet18_vd": (2, 2, 2, 2),
    "resnet34_vd": (3, 4, 6, 3),
    "resnet50_vd": (3, 4, 6, 3),
    "resnet101_vd": (3, 4, 23, 3),
}
BASIC = ("resnet18_vd", "resnet34_vd")  # two 3x3 convolutions a block
PUBLIC = "https://github.com/lyuwenyu/storage/releases/download/v0.1"
FILES = {  # ImageNet weights that RT-DETR starts from
    "resnet18_vd": "ResNet18_vd_pretrained_from_paddle.pth",
    "resnet34_vd": "ResNet34_vd_pretrained_from_paddle.pth",
    "resnet50_vd": "ResNet50_vd_ssld_v2_pretrained_from_paddle.pth",
    "resnet101_vd": "ResNet101_vd_ssld_pretrained_from_paddle.pth",
}


class ResNetVDConfig(StagedConfig):
    """Defaults: that of RT-DETR R50. R18 and R34 train all of it: `norm: bn`, `frozen_stages: 0`."""

    name: Literal["resnet18_vd", "resnet34_vd", "resnet50_vd", "resnet101_vd"] = "resnet50_vd"
    strides: tuple[int, ...] = (8, 16, 32)
    frozen_stages: int = Field(1, ge=0)  # of the stem, C2, C3, C4, C5
    weights: Literal["PADDLE"] | None = None  # RT-DETR's ImageNet weights; null: random
    norm: Literal["frozen_bn", "bn"] = "frozen_bn"  # frozen_bn for pre-trained weights, bn when training from random

    @property
    def stage_strides(self) -> tuple[int | None, ...]:
        return (None, 4, 8, 16, 32)


def build_resnet_vd(config: ResNetVDConfig) -> StagedBackbone:
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # seconds to import, so not at the head

    norm = cast("type[nn.BatchNorm2d]", partial(norm_layer(config.norm), eps=1e-5))
    block = BasicBlock if config.name in BASIC else Bottleneck
    # See ResNet: with random weights every residual block starts as its shortcut.
    shortcut_first = config.norm == "bn" and config.weights is None
    network = ResNet(block, list(BLOCKS[config.name]), norm_layer=norm, zero_init_residual=shortcut_first)
    channels = [64, *(64 * block.expansion * 2**stage for stage in range(4))]
    layers = [network.layer1, network.layer2, network.layer3, network.layer4]
    for layer, before, after in zip(layers, channels, channels[1:], strict=False):
        layer[0].downsample = _shortcut(before, after, norm, halved=layer is not network.layer1)
    stem = _stem(norm)
    blocks = {"stem": stem, "maxpool": network.maxpool, **{f"layer{i}": layer for i, layer in enumerate(layers, 1)}}
    parts = split(blocks, [2, 3, 4, 5, 6])
    stages = [Stage(*stage) for stage in zip(parts, config.stage_strides, channels, strict=True)]
    backbone = StagedBackbone(stages, config.strides, config.frozen_stages)
    if config.weights is not None:
        file = FILES[config.name]
        backbone.load_state_dict(convert_published(download(f"{PUBLIC}/{file}", file)), strict=False)
    return backbone


def _stem(norm: type[nn.BatchNorm2d]) -> nn.Sequential:
    """Three convolutions, each with its norm and ReLU: `[B, 3, H, W]` -> `[B, 64, H / 2, W / 2]`."""
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
        layers += [_conv(before, after, 3, stride), norm(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _shortcut(before: int, after: int, norm: type[nn.BatchNorm2d], *, halved: bool) -> nn.Sequential:
    """The first block of a stage has one that projects, of basic blocks too where the channels stay the same."""
    pool = [nn.AvgPool2d(2, 2, ceil_mode=True)] if halved else []
    return nn.Sequential(*pool, _conv(before, after, 1), norm(after))


def _conv(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def convert_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of the authors' PResNet (`conv1.conv1_1.conv.weight`, `res_layers.0.blocks.0.branch2a...`) by the
    names that they have here."""
    return {_converted(key): value for key, value in state.items()}


def _converted(key: str) -> str:
    """
    `conv1.conv1_2.norm.bias`                   -> `stem.4.bias`
    `res_layers.1.blocks.0.branch2b.norm.bias`  -> `layer2.0.bn2.bias`
    `res_layers.1.blocks.0.short.conv.conv.weight` (after a pool), `res_layers.0.blocks.0.short.conv.weight` (without)
                                                -> `layer2.0.downsample.1.weight`, `layer1.0.downsample.0.weight`
    """
    parts = key.split(".")
    norm = parts[-2] == "norm"
    if parts[0] == "conv1":
        return f"stem.{3 * (int(parts[1][-1]) - 1) + norm}.{parts[-1]}"
    layer, number, branch = int(parts[1]) + 1, parts[3], parts[4]
    if branch == "short":
        return f"layer{layer}.{number}.downsample.{(layer > 1) + norm}.{parts[-1]}"
    conv = "abc".index(branch[-1]) + 1
    return f"layer{layer}.{number}.{'bn' if norm else 'conv'}{conv}.{parts[-1]}"

"""Strides and frozen stages mean the same in every backbone; a trunk may have another layout than its levels."""

import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.backbones.staged import Stage, StagedBackbone, consecutive

RESNET = [r"(conv1|bn1)\.", r"layer1\.", r"layer2\.", r"layer3\.", r"layer4\."]
RESNET_VD = [r"stem\.", r"layer1\.", r"layer2\.", r"layer3\.", r"layer4\."]
DARKNET = [rf"stage{number}\." for number in range(7)]
SWIN = [r"(patches|(outputs\.)?stage1)\.", *(rf"(merge{n}|(outputs\.)?stage{n + 1})\." for n in (1, 2, 3))]
CONVNEXT = [r"(stem|(outputs\.)?stage1)\.", *(rf"(down{n}|(outputs\.)?stage{n + 1})\." for n in (1, 2, 3))]
# the parameters of every stage, by hand from the layers' names
VIDEO_RESNETS = ("r3d_18", "mc3_18", "r2plus1d_18")
STAGES = {
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "resnet152": RESNET,
    **{f"resnet{depth}_vd": RESNET_VD for depth in (18, 34, 50, 101)},
    "vgg11": [r"0\.", r"3\.", r"(6|8)\.", r"(11|13)\.", r"(16|18)\."],
    "vgg13": [r"(0|2)\.", r"(5|7)\.", r"(10|12)\.", r"(15|17)\.", r"(20|22)\."],
    "vgg16": [r"(0|2)\.", r"(5|7)\.", r"(10|12|14)\.", r"(17|19|21)\.", r"(24|26|28)\."],
    "vgg19": [r"(0|2)\.", r"(5|7)\.", r"(10|12|14|16)\.", r"(19|21|23|25)\.", r"(28|30|32|34)\."],
    "vgg16_ssd": [r"(0|2)\.", r"(5|7)\.", r"(10|12|14)\.", r"(17|19|21)\.", r"(24|26|28)\.", r"fc[67]\."],
    "mobilenet_v1": DARKNET[1:6],
    "mobilenet_v3_large": [r"[01]\.", r"[23]\.", r"[456]\.", r"([789]|1[012])\.", r"1[345]\.", r"16\."],
    "mobilenet_v3_small": [r"0\.", r"1\.", r"[23]\.", r"[4-8]\.", r"(9|10|11)\.", r"12\."],
    "mobilenet_v3_large_ssdlite": [
        *(r"[01]\.", r"[23]\.", r"[456]\.", r"([789]|1[012])\."),
        *(r"(13_expand|13_reduce|14|15)\.", r"16\."),
    ],
    "darknet19": DARKNET[:6],
    "darknet53": DARKNET[:6],
    "csp_darknet53": [r"stem\.", *(rf"stage{number}\." for number in range(1, 6))],
    "csp_darknet53_tiny": [rf"stage{number}\." for number in range(1, 5)],
    "csp_darknet": [r"stem\.", *(rf"stage{number}\." for number in range(1, 5))],
    "efficient_rep": [r"stem\.", *(rf"stage{number}\." for number in range(1, 5))],
    "elan_tiny": [r"stem\.", *(rf"stage{number}\." for number in range(1, 5))],
    "elan": [r"stem\.", *(rf"stage{number}\." for number in range(1, 5))],
    "elan_x": [r"stem\.", *(rf"stage{number}\." for number in range(1, 5))],
    "yolov3_tiny": DARKNET[:6],
    "yolov1": DARKNET[1:7],
    "yolov1_tiny": DARKNET,
    "swin_t": SWIN,
    "swin_s": SWIN,
    "swin_b": SWIN,
    "swin_v2_t": SWIN,
    "swin_v2_s": SWIN,
    "swin_v2_b": SWIN,
    "convnext_tiny": CONVNEXT,
    "convnext_small": CONVNEXT,
    "convnext_base": CONVNEXT,
    "convnext_large": CONVNEXT,
    "vit": [r"(patches|block[123])\.", r"block[45]\.", r"block6\.", r"block([789]|10)\."],
    "dinov2": [r"(patches|block[123])\.", r"block[456]\.", r"block[789]\.", r"(block1[012]|norm)\."],
    "timm": [r"network\.(stem|stages_0)\.", *(rf"network\.stages_{number}\." for number in (1, 2, 3))],
    "lenet5": [r"(c1|s2)\.", r"(c3|s4)\."],
    "alexnet": [r"0\.", r"3\.", r"6\.", r"8\.", r"10\."],
    "caffenet": [rf"conv{number}\." for number in range(1, 6)],
    "googlenet": [r"conv1\.", r"conv[23]\.", r"inception3", r"inception4", r"inception5"],
    "inception_v3": [r"Conv2d_[12]", r"Conv2d_[34]", r"Mixed_5", r"Mixed_6", r"Mixed_7"],
    "c3d": [*(rf"(conv|norm){number}[ab]?\." for number in range(1, 6)), r"pool5\."],
    **{name: [r"stem\.", *(rf"layer{number}\." for number in range(1, 5))] for name in VIDEO_RESNETS},
    "s3d": [r"0\.", r"[123]\.", r"[456]\.", r"([789]|1[012])\.", r"1[345]\."],
}


def make_config(name: str, **fields: Any) -> Any:
    model = {"model": "hgnetv2_b0"} if name == "timm" else {}
    return TypeAdapter(BackboneConfig).validate_python({"name": name, **model, **fields})


def make_full_config(name: str, **fields: Any) -> Any:
    """With all levels, and batch norms that learn where there is a choice."""
    config = make_config(name)
    if "norm" in type(config).model_fields:
        fields["norm"] = "bn"
    if name == "lenet5":
        fields["connections"] = "sparse"  # its pooling layers have parameters
    strides = tuple(stride for stride in config.stage_strides if stride is not None)
    return make_config(name, strides=strides, **fields)


def test_every_backbone_is_in_the_table() -> None:
    configs = get_args(get_args(BackboneConfig)[0])
    assert sorted(STAGES) == sorted(name for c in configs for name in get_args(c.model_fields["name"].annotation))


@pytest.mark.parametrize("name", STAGES)
def test_exactly_the_first_n_stages_are_frozen(name: str) -> None:
    patterns = STAGES[name]
    for number in range(len(patterns) + 1):
        with torch.device("meta"):
            backbone = build_backbone(make_full_config(name, frozen_stages=number)).train()
        frozen, learning = re.compile("|".join(patterns[:number]) or "nothing"), "|".join(patterns[number:])
        for key, parameter in backbone.named_parameters():
            assert parameter.requires_grad != bool(frozen.match(key)), (number, key)
            assert bool(frozen.match(key)) != bool(learning and re.match(learning, key)), f"{key} is in no stage"
        for key, module in backbone.named_modules():
            if list(module.parameters(recurse=False)):
                assert module.training != bool(frozen.match(f"{key}.")), (number, key)
    with pytest.raises(ValidationError, match=f"frozen_stages: {name} has {len(patterns)} stages, found {number + 1}"):
        make_config(name, frozen_stages=number + 1)


@pytest.mark.parametrize("name", STAGES)
def test_frozen_stages_that_are_left_out_do_no_harm(name: str) -> None:
    with torch.device("meta"):
        config = make_full_config(name, frozen_stages=len(STAGES[name]))
        backbone = build_backbone(config.model_copy(update={"strides": config.strides[:1]})).train()
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "strides", "message"),
    [
        (
            "resnet18",
            (5,),
            "strides: resnet18 has 4, 8, 16, 32, found [5]; expected at least one of these, finest first",
        ),
        ("resnet18", (16, 8), "strides: resnet18 has 4, 8, 16, 32, found [16, 8]"),
        ("resnet18", (4, 4), "strides: resnet18 has 4, 8, 16, 32, found [4, 4]"),
        ("vgg16", (), "strides: vgg16 has 1, 2, 4, 8, 16, found []"),
        ("vgg16_ssd", (16, 16, 16), "strides: vgg16_ssd has 1, 2, 4, 8, 16, 16, found [16, 16, 16]"),
        ("mobilenet_v3_large", (32, 32, 32), "strides: mobilenet_v3_large has 2, 4, 8, 16, 32, 32, found [32, 32, 32]"),
        ("darknet53", (16, 32, 64), "strides: darknet53 has 1, 2, 4, 8, 16, 32, found [16, 32, 64]"),
        ("yolov1", (1,), "strides: yolov1 has 2, 4, 8, 16, 32, 64, found [1]"),
        ("yolov1", (-2, 64), "strides: yolov1 has 2, 4, 8, 16, 32, 64, found [-2, 64]"),
        ("lenet5", (8,), "strides: lenet5 has 2, 4, found [8]"),
        ("googlenet", (8, 8), "strides: googlenet has 2, 4, 8, 16, 32, found [8, 8]"),
    ],
)
def test_strides_that_do_not_exist_are_refused(name: str, strides: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        make_config(name, strides=strides)


def test_a_dilated_resnet_has_two_levels_of_stride_16() -> None:
    with pytest.raises(ValidationError, match=r"strides: resnet50 has 4, 8, 16, 16, found \[32\]"):
        ResNetConfig(strides=(32,), dilation=True)
    with torch.device("meta"):
        (c5,) = build_backbone(ResNetConfig(strides=(16,), dilation=True)).out_channels
        c4, again = build_backbone(ResNetConfig(strides=(16, 16), dilation=True)).out_channels
    assert (c4, c5, again) == (1024, 2048, 2048)
    with pytest.raises(ValidationError, match="dilation: resnet18 has no bottleneck blocks"):
        ResNetConfig(name="resnet18", dilation=True)


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ((8,), True),
        ((8, 16, 32), True),
        ((32, 32), True),
        ((8, 16, 16, 32), True),
        ((8, 32), False),
        ((4, 8, 32), False),
        ((16, 8), False),
    ],
)
def test_consecutive(strides: tuple[int, ...], expected: bool) -> None:
    assert consecutive(strides) is expected


class ToChannelsLast(nn.Module):
    """`[B, C, H, W]` -> `[B, H / 4, W / 4, 12]`: patches of 4 x 4 pixels, as the stem of a Swin transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 12)

    def forward(self, images: Tensor) -> Tensor:
        patches = nn.functional.pixel_unshuffle(images, 4).permute(0, 2, 3, 1)
        y: Tensor = self.linear(patches)
        return y


class Merge(nn.Module):
    """`[B, H, W, C]` -> `[B, H / 2, W / 2, 2 C]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2] for i in range(2) for j in range(2)]
        y: Tensor = self.linear(torch.cat(corners, dim=-1)).relu()
        return y


class NormAndPermute(nn.Module):
    """`[B, H, W, C]` -> `[B, C, H, W]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x).permute(0, 3, 1, 2)
        return y


def make_transformer(strides: tuple[int, ...], frozen_stages: int = 0) -> StagedBackbone:
    torch.manual_seed(0)
    stages = [
        Stage({"patches": ToChannelsLast()}, None, 12),
        Stage({"stage1": nn.Linear(12, 12)}, 4, 12, output=NormAndPermute(12)),
        Stage({"merge2": Merge(12), "stage2": nn.Linear(24, 24)}, 8, 24, output=NormAndPermute(24)),
        Stage({"merge3": Merge(24), "stage3": nn.Linear(48, 48)}, 16, 48, output=NormAndPermute(48)),
    ]
    return StagedBackbone(stages, strides, frozen_stages)


@torch.no_grad()
def test_the_output_module_changes_the_level_and_not_the_input_of_the_next_block() -> None:
    backbone = make_transformer((4, 8, 16))
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    levels = backbone(images)
    assert [tuple(level.shape) for level in levels] == [(2, 12, 8, 12), (2, 24, 4, 6), (2, 48, 2, 3)]
    x = backbone.stage1(backbone.patches(images))
    torch.testing.assert_close(levels[0], nn.functional.layer_norm(x, (12,)).permute(0, 3, 1, 2))
    x = backbone.stage2(backbone.merge2(x))
    torch.testing.assert_close(levels[1], nn.functional.layer_norm(x, (24,)).permute(0, 3, 1, 2))
    (coarse,) = make_transformer((16,))(images)
    assert torch.equal(coarse, levels[2])


def test_only_tapped_levels_have_an_output_module() -> None:
    backbone = make_transformer((8,))
    outputs = [key for key in backbone.state_dict() if key.startswith("outputs")]
    assert outputs == ["outputs.stage2.norm.weight", "outputs.stage2.norm.bias"]
    assert "stage3.weight" not in backbone.state_dict()
    assert not any("output" in key for key in build_backbone(ResNetConfig(name="resnet18")).state_dict())


def test_the_output_module_is_frozen_with_its_stage() -> None:
    backbone = make_transformer((4, 8, 16), frozen_stages=2).train()
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert {name.rpartition(".")[0] for name in frozen} == {"patches.linear", "stage1", "outputs.stage1.norm"}
    assert not backbone.outputs["stage1"].training
    assert backbone.outputs["stage2"].training


@pytest.mark.parametrize("make", [lambda: make_transformer((2,)), lambda: make_transformer((4, 4))])
def test_a_trunk_without_such_a_level_is_not_built(make: Callable[[], StagedBackbone]) -> None:
    with pytest.raises(ValueError, match=r"strides: this backbone has 4, 8, 16, found \["):
        make()

"""ResNet-vd beside a slow form on torch's functions, whose parameters have the authors' names."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.nn.backbones import resnet_vd
from detkit.nn.backbones.resnet_vd import BLOCKS, ResNetVDConfig, build_resnet_vd, convert_published


def conv_shapes(name: str) -> dict[str, tuple[int, int, int]]:
    """(out, in, size) of every convolution by the authors' names, written out from the paper's table."""
    basic = name in ("resnet18_vd", "resnet34_vd")
    shapes = {"conv1.conv1_1": (32, 3, 3), "conv1.conv1_2": (32, 32, 3), "conv1.conv1_3": (64, 32, 3)}
    before = 64
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), BLOCKS[name], strict=True)):
        out = width if basic else 4 * width
        for number in range(count):
            block = f"res_layers.{stage}.blocks.{number}"
            sizes = [(width, before, 3), (width, width, 3)]
            if not basic:
                sizes = [(width, before, 1), (width, width, 3), (out, width, 1)]
            shapes |= {f"{block}.branch2{letter}": size for letter, size in zip("abc", sizes, strict=False)}
            if number == 0:
                shapes[f"{block}.short.conv" if stage else f"{block}.short"] = (out, before, 1)
            before = out
    return shapes


def random_state(name: str) -> dict[str, Tensor]:
    state = {}
    for key, (out, inputs, size) in conv_shapes(name).items():
        state[f"{key}.conv.weight"] = torch.randn(out, inputs, size, size) * (2 / (inputs * size**2)) ** 0.5
        state[f"{key}.norm.weight"] = torch.rand(out) * 0.4 + 0.3
        state[f"{key}.norm.bias"] = torch.randn(out) * 0.1
        state[f"{key}.norm.running_mean"] = torch.randn(out) * 0.1
        state[f"{key}.norm.running_var"] = torch.rand(out) + 0.5
    return state


def slow(state: dict[str, Tensor], name: str, x: Tensor) -> list[Tensor]:
    """The four levels: the published network line by line."""

    def layer(key: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{key}.conv.weight"]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)
        mean, var, scale, shift = (state[f"{key}.norm.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, scale, shift)

    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = layer(f"conv1.conv1_{number}", x, stride).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    levels = []
    for stage, count in enumerate(BLOCKS[name]):
        for number in range(count):
            block = f"res_layers.{stage}.blocks.{number}"
            stride = 2 if stage > 0 and number == 0 else 1
            shortcut = x
            if number == 0:
                pooled = F.avg_pool2d(x, 2, 2, ceil_mode=True) if stage else x
                shortcut = layer(f"{block}.short.conv" if stage else f"{block}.short", pooled)
            if f"{block}.branch2c.conv.weight" in state:
                y = layer(f"{block}.branch2a", x).relu()
                y = layer(f"{block}.branch2c", layer(f"{block}.branch2b", y, stride).relu())
            else:
                y = layer(f"{block}.branch2b", layer(f"{block}.branch2a", x, stride).relu())
            x = (y + shortcut).relu()
        levels.append(x)
    return levels


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
@pytest.mark.parametrize("name", ["resnet18_vd", "resnet50_vd"])
@torch.no_grad()
def test_levels_are_those_of_the_published_network(name: str, norm: Any) -> None:
    """On a picture whose sides no stride divides."""
    torch.manual_seed(0)
    state = random_state(name)
    backbone = build_resnet_vd(ResNetVDConfig(name=name, strides=(4, 8, 16, 32), norm=norm)).eval()  # type: ignore[arg-type]
    backbone.load_state_dict(convert_published(state))
    image = torch.randn(1, 3, 75, 50)
    for level, expected in zip(backbone(image), slow(state, name, image), strict=True):
        torch.testing.assert_close(level, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(BLOCKS))
def test_the_published_names_are_all_of_them(name: Any) -> None:
    with torch.device("meta"):
        backbone = build_resnet_vd(ResNetVDConfig(name=name, strides=(4, 8, 16, 32), norm="bn"))
        converted = convert_published(random_state(name))
    own = {key: value.shape for key, value in backbone.state_dict().items() if "num_batches" not in key}
    assert own == {key: value.shape for key, value in converted.items()}


def test_published_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    state, urls = random_state("resnet18_vd"), []

    def download(url: str, name: str) -> dict[str, Tensor]:
        urls.append(url)
        return state

    monkeypatch.setattr(resnet_vd, "download", download)
    backbone = build_resnet_vd(ResNetVDConfig(name="resnet18_vd", weights="PADDLE", strides=(8, 16)))
    assert urls[0].endswith("/ResNet18_vd_pretrained_from_paddle.pth")
    assert torch.equal(backbone.layer2[0].conv1.weight, state["res_layers.1.blocks.0.branch2a.conv.weight"])  # type: ignore[index,union-attr]
    assert backbone.out_channels == (128, 256)

"""Plain vision transformers with windows: what sees what, the order of windows, positions and pictures of any size."""

import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from detkit.nn.backbones.vit import Block, DINOv2Config, Patches, ViT, ViTConfig

SMALL: dict[str, Any] = {"width": 8, "heads": 2, "patch": 4, "windows": 2, "positions": 4}
VIT = ViTConfig(**SMALL, layers=2, taps=(1, 2), strides=(4, 4), global_blocks=(2,))
DINO = DINOv2Config(**SMALL, layers=2, taps=(1, 2), strides=(4, 4))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def lively(config: ViTConfig | DINOv2Config) -> ViT:
    backbone = ViT(config).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return backbone


@pytest.mark.parametrize("config", [VIT, DINO], ids=["vit", "dinov2"])
@torch.no_grad()
def test_the_first_block_sees_its_window_and_the_global_one_the_picture(config: ViTConfig | DINOv2Config) -> None:
    """4 x 8 cells in 2 x 2 windows, of which one in the lower left changes."""
    backbone, images = lively(config), torch.randn(1, 3, 16, 32)
    before = backbone(images)
    images[:, :, 8:12, 4:8] += 1
    changed = [(a != b).any(dim=1)[0] for a, b in zip(before, backbone(images), strict=True)]
    window = torch.zeros(4, 8, dtype=torch.bool)
    window[2:, :4] = True
    assert torch.equal(changed[0], window)
    assert changed[1].all()


@torch.no_grad()
def test_a_global_block_is_attention_of_all_windows_together() -> None:
    config = VIT
    block, x = Block(config, 4, key_bias=False, scale=0.1), torch.randn(8, 5, 8)
    joined = Block(config, 1, key_bias=False, scale=0.1)
    joined.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(x), joined(x.reshape(2, 20, 8)).reshape(8, 5, 8))


@torch.no_grad()
def test_patches_come_window_by_window_with_the_position_of_their_cell() -> None:
    """A 4 x 4 table: the rows of the first window are 0, 1, 4, 5; the class token has a row of its own, the first."""
    patches = Patches(VIT, class_token=False)
    patches.projection.weight.zero_(), patches.projection.bias.zero_()
    patches.positions.copy_(torch.arange(-1.0, 16.0)[:, None].expand(-1, 8)[None])
    images = torch.randn(2, 3, 16, 16)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert patches(images)[..., 0].tolist() == expected * 2
    with_token = Patches(VIT, class_token=True)
    with_token.load_state_dict({**patches.state_dict(), "class_token": torch.full((1, 1, 8), 10.0)})
    assert with_token(images)[..., 0].tolist() == [[9, *window] for window in expected] * 2


@pytest.mark.parametrize("config", [VIT, DINO], ids=["vit", "dinov2"])
@torch.no_grad()
def test_pictures_of_any_size_are_padded_to_whole_windows(config: ViTConfig | DINOv2Config) -> None:
    backbone, images = lively(config), torch.randn(1, 3, 13, 18)
    padded: Tensor = torch.zeros(1, 3, 16, 24)
    padded[:, :, :13, :18] = images
    for level, whole in zip(backbone(images), backbone(padded), strict=True):
        assert level.shape == (1, 8, 4, 5)
        torch.testing.assert_close(level, whole[:, :, :4, :5])


def test_later_blocks_are_left_out_more_often() -> None:
    config = VIT.model_copy(update={"layers": 3, "taps": (1, 3), "drop_path": 0.2})
    blocks = [block for block in ViT(config).modules() if isinstance(block, Block)]
    assert [block.drop_path.p for block in blocks] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"taps": (3, 2)}, "taps: expected ascending numbers from 1 to 10, found [3, 2]"),
        ({"taps": (0, 10)}, "taps: expected ascending numbers from 1 to 10, found [0, 10]"),
        ({"width": 100}, "width: expected a multiple of heads, 12, found 100"),
        ({"strides": (8,)}, "strides: vit has 16, 16, 16, 16, found [8]"),
    ],
)
def test_blocks_that_do_not_exist(fields: dict[str, Any], message: str) -> None:
    strides = (16,) * len(fields.get("taps", (3, 5, 6, 10)))
    with pytest.raises(ValidationError, match=re.escape(message)):
        ViTConfig(**{"strides": strides, **fields})

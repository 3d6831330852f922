"""Pictures resized in tensors against `ImageInput.place`, OpenCV and torch's interpolation."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from detkit.data.collate import canvas_size, collate
from detkit.data.transforms import resize_sample
from detkit.export.resize import resize_pictures
from detkit.nn.input import (
    ImageInput,
    InputConfig,
    KeepConfig,
    LetterboxConfig,
    ResizeConfig,
    ShortSideConfig,
    StretchConfig,
)
from detkit.structures import Objects, Sample

RULES: dict[str, ResizeConfig] = {
    "stretch": StretchConfig(size=48),
    "letterbox": LetterboxConfig(size=64),
    "short_side": ShortSideConfig(size=40, max_size=70),
    "keep": KeepConfig(),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def resized_by_opencv(picture: np.ndarray, image_input: ImageInput) -> tuple[Tensor, list[int]]:
    info = image_input.place(0, picture.shape[:2])
    sample = resize_sample(Sample(picture, Objects.empty(), 0), info.input_size)
    return collate([(sample, info)], image_input.stride, with_targets=False).images, list(info.input_size)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(RULES)), st.integers(1, 150), st.integers(1, 150), st.integers(0, 9))
def test_as_the_data_path_does(rule: str, height: int, width: int, seed: int) -> None:
    """The same size, place and numbers. OpenCV's vector code rounds a few otherwise than its own plain code."""
    image_input = ImageInput(InputConfig(resize=RULES[rule]), stride=1 if rule == "keep" else 16)
    picture = smooth(height, width, seed)
    expected, size = resized_by_opencv(picture, image_input)
    images = torch.from_numpy(picture).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    actual, sizes = resize_pictures(images, image_input)
    assert sizes.tolist() == [size, size]
    assert actual.shape == (2, *expected.shape[1:])
    assert (actual - expected.float()).abs().max() <= 1
    assert torch.equal(actual, actual.round())


@pytest.mark.parametrize(
    ("rule", "size"),
    [("stretch", (240, 320)), ("stretch", (97, 61)), ("letterbox", (128, 96)), ("short_side", (375, 500))],
)
def test_nearly_every_number_is_that_of_opencv(rule: str, size: tuple[int, int]) -> None:
    """Plain bilinear interpolation, rounded, gives another number in every tenth place."""
    image_input = ImageInput(InputConfig(resize=RULES[rule]), stride=16)
    picture = smooth(*size, seed=1)
    expected, _ = resized_by_opencv(picture, image_input)
    actual, _ = resize_pictures(torch.from_numpy(picture).permute(2, 0, 1)[None], image_input)
    assert (actual != expected).float().mean() < 0.003


def test_bilinear_weights_are_those_of_torch() -> None:
    image_input = ImageInput(InputConfig(resize=StretchConfig(size=48)), stride=16)
    images = torch.from_numpy(smooth(31, 77, 0)).permute(2, 0, 1)[None]
    actual, _ = resize_pictures(images, image_input)
    expected = F.interpolate(images.float(), (48, 48), mode="bilinear", align_corners=False)
    assert (actual - expected).abs().max() <= 1


class Resize(nn.Module):
    def __init__(self, rule: ResizeConfig) -> None:
        super().__init__()
        self.input = ImageInput(InputConfig(resize=rule), stride=16)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return resize_pictures(images, self.input)


@rules
def test_one_program_for_pictures_of_every_size(rule: ResizeConfig) -> None:
    module = Resize(rule)
    example = torch.zeros(2, 3, 100, 70, dtype=torch.uint8)
    sides = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(module, (example,), dynamic_shapes=(sides,), strict=False).module()
    for number, (height, width) in enumerate([(100, 70), (33, 90), (20, 20), (64, 200)]):
        images = torch.from_numpy(smooth(height, width, number)).permute(2, 0, 1)[None].repeat(number + 1, 1, 1, 1)
        for actual, expected in zip(program(images), module(images), strict=True):
            assert torch.equal(actual, expected)
        info = module.input.place(0, (height, width))
        if not isinstance(rule, KeepConfig):
            assert program(images)[0].shape[2:] == canvas_size([info], 16)

"""Where the windows of a pyramid lie and what they show, counted by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit.nn.proposals.windows import Level, PyramidConfig, canvas_pyramid, cut_windows, pyramid


def test_windows_of_a_level() -> None:
    level = Level(torch.zeros(3, 40, 33), (1.0, 1.0), window=32, stride=4)
    assert level.grid == (3, 1)
    assert level.boxes().tolist() == [[0, 0, 32, 32], [0, 4, 32, 36], [0, 8, 32, 40]]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (35, 36), (100, 61), (64, 99)])
def test_their_number_is_the_published_formula(height: int, width: int) -> None:
    level = Level(torch.zeros(3, height, width), (1.0, 1.0), window=32, stride=8)
    expected = (math.floor((height - 32) / 8) + 1) * (math.floor((width - 32) / 8) + 1)
    assert len(level.boxes()) == expected
    assert level.boxes()[:, 2].max() <= width
    assert level.boxes()[:, 3].max() <= height


def test_boxes_are_in_pixels_of_the_image() -> None:
    level = Level(torch.zeros(3, 40, 40), (2.0, 0.5), window=32, stride=8)
    assert level.boxes().tolist() == [[0, 0, 16, 64], [4, 0, 20, 64], [0, 16, 16, 80], [4, 16, 20, 80]]


def test_crops_are_what_lies_in_the_boxes() -> None:
    image = torch.rand(3, 50, 61)
    level = Level(image, (1.0, 1.0), window=20, stride=7)
    indices = torch.tensor([0, 3, 8, 11, 29])
    for crop, box in zip(level.crops(indices), level.boxes()[indices].int().tolist(), strict=True):
        assert torch.equal(crop, image[:, box[1] : box[3], box[0] : box[2]])


def test_a_pyramid_ends_with_the_last_level_that_holds_a_window() -> None:
    levels = pyramid(torch.rand(3, 64, 96), PyramidConfig(window=32, largest_scale=2.0, levels_per_octave=2), stride=4)
    assert [tuple(level.image.shape[1:]) for level in levels] == [(128, 192), (91, 136), (64, 96), (45, 68), (32, 48)]
    assert levels[1].scale == (136 / 96, 91 / 64)
    assert levels[-1].grid == (1, 5)


def test_an_image_smaller_than_the_window_is_enlarged() -> None:
    (level,) = pyramid(torch.rand(3, 8, 12), PyramidConfig(window=32, largest_scale=1.0), stride=4)
    assert level.image.shape == (3, 32, 48)
    assert level.boxes()[0].tolist() == [0, 0, 8, 8]


ODD = PyramidConfig(window=21, largest_scale=1.7, levels_per_octave=3)
SIZES = [(90, 120), (70, 61), (33, 120), (17, 40), (16, 16), (10, 45), (3, 5)]  # the last two are enlarged


@pytest.mark.parametrize("config", [PyramidConfig(), ODD], ids=["default", "odd"])
def test_pictures_on_a_canvas_have_the_levels_and_windows_of_their_own_pyramids(config: PyramidConfig) -> None:
    """Whatever lies beyond them on the canvas."""
    images = torch.randn(len(SIZES), 3, 90, 120, generator=torch.Generator().manual_seed(1))
    levels = canvas_pyramid(images, torch.tensor(SIZES), config, stride=4)
    assert len(levels) == len(pyramid(images[0], config, stride=4))
    for number, (height, width) in enumerate(SIZES):
        own = pyramid(images[number, :, :height, :width], config, stride=4)
        windows = torch.cat([level.boxes[number][level.valid[number]] for level in levels])
        assert torch.equal(windows, torch.cat([level.boxes() for level in own]))
        for level, alone in zip(levels, own, strict=False):
            h, w = alone.image.shape[1:]
            torch.testing.assert_close(level.images[number, :, :h, :w], alone.image, atol=1e-5, rtol=0)
            assert not level.images[number, :, h:].any()
            assert not level.images[number, :, :, w:].any()


class Windows(nn.Module):
    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        levels = canvas_pyramid(images, sizes, ODD, stride=4)
        return torch.cat([level.boxes for level in levels], dim=1), torch.cat([level.valid for level in levels], dim=1)


@pytest.mark.long
def test_windows_are_the_same_in_a_file(tmp_path: Path) -> None:
    """For pictures of every size: a scale that is only nearly right gives some of them a level of another size."""
    onnxruntime = pytest.importorskip("onnxruntime")
    batch = {0: torch.export.Dim("batch")}
    inputs = (torch.zeros(2, 1, 48, 64), torch.tensor([[48, 64]] * 2))
    program = torch.export.export(Windows(), inputs, dynamic_shapes=(batch, batch), strict=False)
    model = torch.onnx.export(program, dynamo=True, opset_version=21, verbose=False)
    assert model is not None
    model.save(tmp_path / "windows.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "windows.onnx")
    sizes = [(max(1, side * 3 // 4), side) for side in range(1, 65)] + [(10, 25), (10, 45)]
    arrays = np.zeros((len(sizes), 1, 48, 64), np.float32), np.array(sizes)
    names = [value.name for value in session.get_inputs()]
    boxes, valid = map(torch.from_numpy, session.run(None, dict(zip(names, arrays, strict=True))))
    for number, size in enumerate(sizes):
        expected = torch.cat([level.boxes() for level in pyramid(torch.zeros(1, *size), ODD, stride=4)])
        assert torch.equal(boxes[number][valid[number]], expected), size


def test_a_long_picture_that_is_enlarged_lacks_the_windows_beyond_the_canvas() -> None:
    """5 x 120 px become 32 x 768 px, of which the finest level of the canvas, 240 px wide, has the first."""
    config, image = PyramidConfig(largest_scale=2.0), torch.rand(3, 90, 120)
    levels = canvas_pyramid(image[None], torch.tensor([[5, 120]]), config, stride=4)
    assert [int(level.valid.sum()) for level in levels] == [(240 - 32) // 4 + 1, *[0] * (len(levels) - 1)]
    (own,) = pyramid(image[:, :5], config, stride=4)
    assert torch.equal(levels[0].boxes[levels[0].valid], own.boxes()[:53])


def test_a_picture_without_pixels_has_no_window() -> None:
    levels = canvas_pyramid(torch.rand(2, 3, 40, 40), torch.tensor([[0, 0], [0, 40]]), PyramidConfig(), stride=4)
    assert not any(level.valid.any() for level in levels)
    assert all(level.images.isfinite().all() and level.boxes.isfinite().all() for level in levels)


def test_windows_are_counted_through_the_levels() -> None:
    levels = pyramid(torch.rand(3, 40, 50), PyramidConfig(window=16, largest_scale=1.0, levels_per_octave=1), stride=5)
    boxes = torch.cat([level.boxes() for level in levels])
    counts = [len(level.boxes()) for level in levels]
    indices = torch.tensor([counts[0], 2, len(boxes) - 1, 0, counts[0] - 1])
    crops = cut_windows(levels, indices)
    assert torch.equal(crops[0], levels[1].image[:, :16, :16])
    assert torch.equal(crops[3], levels[0].image[:, :16, :16])
    assert torch.equal(crops[1], levels[0].image[:, :16, 10:26])
    assert torch.equal(crops[2], levels[-1].crops(torch.tensor([counts[-1] - 1]))[0])

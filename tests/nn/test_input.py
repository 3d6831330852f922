"""An image becomes a network input: by hand."""

import pytest
import torch
from torch import Tensor

from detkit.nn.input import ImageInput, InputConfig, LetterboxConfig, ShortSideConfig, StretchConfig

MEAN, STD = (100.0, 50.0, 10.0), (2.0, 4.0, 5.0)


def image_input(stride: int = 32, **fields: object) -> ImageInput:
    return ImageInput(InputConfig(**fields), stride)  # type: ignore[arg-type]


def make_images() -> tuple[Tensor, Tensor]:
    """Two pictures on one canvas of 4 x 4 and their sizes: one fills it, one is 2 x 3. Every pixel is (R, G, B) =
    (104, 58, 0)."""
    images = torch.tensor([104, 58, 0], dtype=torch.uint8).view(1, 3, 1, 1).repeat(2, 1, 4, 4)
    images[1, :, 2:] = 0
    images[1, :, :, 3:] = 0
    return images, torch.tensor([(4, 4), (2, 3)])


def test_pixels_are_normalised() -> None:
    pixels = image_input(mean=MEAN, std=STD)(*make_images())
    assert pixels.dtype == torch.float32
    assert pixels[0, :, 3, 3].tolist() == [2, 2, -2]  # (104 - 100) / 2, (58 - 50) / 4, (0 - 10) / 5
    assert pixels[0].amax(dim=(1, 2)).tolist() == pixels[0].amin(dim=(1, 2)).tolist() == [2, 2, -2]


def test_bgr_turns_the_channels_round_and_mean_and_std_are_in_that_order() -> None:
    pixels = image_input(mean=MEAN, std=STD, channel_order="bgr")(*make_images())
    assert pixels[0, :, 0, 0].tolist() == [-50, 2, pytest.approx(94 / 5)]  # blue first


def test_padding_is_zero_after_the_normalisation() -> None:
    images, sizes = make_images()
    pixels = image_input(mean=MEAN, std=STD)(images, sizes)[1]
    assert (pixels[:, :2, :3] != 0).all()
    assert pixels.sum() == pixels[:, :2, :3].sum()
    assert (pixels[:, 2:] == 0).all()
    assert (pixels[:, :, 3:] == 0).all()
    assert images[0, 0, 0, 0] == 104  # the images themselves stay as they are


def test_defaults_are_imagenets_in_pixels() -> None:
    config = InputConfig()
    assert config.mean == pytest.approx([255 * m for m in (0.485, 0.456, 0.406)])
    assert config.std == pytest.approx([255 * s for s in (0.229, 0.224, 0.225)])


@pytest.mark.parametrize(
    ("orig_size", "input_size"),
    [
        ((600, 800), (600, 800)),  # the short side is right already
        ((300, 400), (600, 800)),  # enlarged
        ((500, 375), (800, 600)),  # portrait: the width is the short side
        ((375, 500), (600, 800)),
        ((300, 600), (500, 1000)),  # 600 x 1200 would pass the cap of 1000
        ((333, 500), (600, 901)),  # 500 * 600 / 333 = 900.9
        ((1000, 1801), (555, 1000)),  # capped; 1000 * 1000 / 1801 = 555.2
        ((1000, 1802), (555, 1000)),
        ((64, 64), (600, 600)),
        ((7, 4000), (2, 1000)),  # 1.75
        ((1, 5000), (1, 1000)),  # 0.2: at least one pixel
    ],
)
def test_short_side_rule(orig_size: tuple[int, int], input_size: tuple[int, int]) -> None:
    rule = ShortSideConfig(size=600, max_size=1000)
    assert image_input(resize=rule).place(0, orig_size).input_size == input_size


@pytest.mark.parametrize(("side", "expected"), [(201, 101), (202, 101), (203, 102)])
def test_half_pixels_are_rounded_up(side: int, expected: int) -> None:
    spec = image_input(resize=ShortSideConfig(size=50, max_size=1000))  # half of 100
    assert spec.place(0, (100, side)).input_size == (50, expected)
    assert spec.place(0, (side, 100)).input_size == (expected, 50)


def test_a_draw_picks_a_training_size_and_evaluation_none() -> None:
    spec = image_input(resize=ShortSideConfig(size=600, max_size=1000, train_sizes=(480, 576, 688)))
    assert [spec.place(0, (100, 100), draw).input_size[0] for draw in (0, 1, 2, 3, 7)] == [480, 576, 688, 480, 576]
    assert spec.place(0, (100, 100)).input_size == (600, 600)
    assert spec.place(0, (100, 200), 2).input_size == (500, 1000)  # the cap holds in training too
    assert image_input(resize=ShortSideConfig(size=600, max_size=1000)).place(0, (100, 100), 5).input_size == (600, 600)


def test_mean_and_std_are_no_weights() -> None:
    assert image_input().state_dict() == {}


def test_stretch_forgets_the_aspect() -> None:
    info = image_input(resize=StretchConfig(size=300)).place("a", (150, 600))
    assert (info.input_size, info.scale, info.offset) == ((300, 300), (0.5, 2.0), (0, 0))


def test_letterbox_centres_the_picture_in_a_grey_square() -> None:
    spec = image_input(resize=LetterboxConfig(size=416), mean=(0, 0, 0), std=(255, 255, 255))
    info = spec.place("a", (375, 500))  # darknet: 416 x 312 with 52 above and below
    assert (info.input_size, info.offset) == ((312, 416), (0, 52))
    assert info.scale == pytest.approx((0.832, 0.832))
    assert spec.place("a", (500, 375)).offset == (52, 0)
    assert spec.place("a", (334, 500)).offset == (0, 69)  # 277 high: 139 / 2, rounded down
    pixels = spec(torch.full((1, 3, 416, 416), 255, dtype=torch.uint8), torch.tensor([info.input_size]))[0]
    assert (pixels[:, :52] == 0.5).all()
    assert (pixels[:, 364:] == 0.5).all()
    assert (pixels[:, 52:364] == 1).all()


def test_a_letterboxs_training_sizes_are_drawn() -> None:
    spec = image_input(resize=LetterboxConfig(size=416, train_sizes=(320, 608)))
    assert [max(spec.place(0, (10, 20), draw).input_size) for draw in (None, 0, 1, 2)] == [416, 320, 608, 320]


@pytest.mark.parametrize("orig_size", [(375, 500), (500, 375), (334, 500), (333, 501), (64, 64), (1, 5000)])
def test_windows_are_where_the_pictures_were_placed(orig_size: tuple[int, int]) -> None:
    """The core knows sizes only; the offset of a letterbox follows from them."""
    for rule in (LetterboxConfig(size=416), StretchConfig(size=300), ShortSideConfig(size=60, max_size=100)):
        spec = image_input(resize=rule)
        info = spec.place("a", orig_size)
        (x, y), (height, width) = info.offset, info.input_size
        assert spec.windows(torch.tensor([info.input_size])).tolist() == [[x, y, x + width, y + height]]

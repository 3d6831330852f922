from functools import cache

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.testing import assert_close
from torchvision.ops.poolers import LevelMapper

from detkit.ops.roi import feature_levels, multilevel_roi_align, roi_align, roi_pool, roi_warp
from tests.ops.cases import random_boxes
from tests.reference import roi as reference

STRIDES = (4, 8, 16, 32)
SIZE = 640


def random_features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(function, features: Tensor, boxes: list[Tensor], *arguments) -> Tensor:
    return torch.tensor(
        [
            [function(channel, box, *arguments) for channel in image.tolist()]
            for image, image_boxes in zip(features, boxes, strict=True)
            for box in image_boxes.tolist()
        ],
        dtype=torch.float64,
    )


# On a map of 9 x 12 cells of 8 px: inside, thinner than a cell, a point, beyond the border, outside.
ODD = torch.tensor(
    [[3, 5, 60, 40], [10, 10, 11, 50], [20, 20, 20, 20], [60, 30, 120, 90], [200, 200, 240, 260]], dtype=torch.float64
)
FEATURES = random_features(2, 2, 9, 12)
BOXES = [torch.cat((random_boxes(4, size=70), ODD)), random_boxes(3, size=70, seed=1)]


@pytest.mark.parametrize("output_size", [(1, 1), (2, 3), (7, 7)])
def test_roi_pool_equals_the_definition(output_size: tuple[int, int]) -> None:
    expected = by_hand(reference.roi_pool, FEATURES, BOXES, output_size, 1 / 8)
    assert_close(roi_pool(FEATURES, BOXES, output_size, 1 / 8), expected)


@pytest.mark.parametrize("output_size", [(1, 1), (2, 3), (7, 7)])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_equals_the_definition(output_size: tuple[int, int], sampling_ratio: int, aligned: bool) -> None:
    expected = by_hand(reference.roi_align, FEATURES, BOXES, output_size, 1 / 8, sampling_ratio, aligned)
    actual = roi_align(FEATURES, BOXES, output_size, 1 / 8, sampling_ratio=sampling_ratio, aligned=aligned)
    assert_close(actual, expected)


IMAGES = random_features(2, 2, 30, 41)
CROPS = [
    torch.tensor(
        [[3, 5, 30, 20], [0, 0, 41, 30], [10, 10, 10, 10], [20.4, 3.6, 24.5, 28], [-6, -9, 12, 11], [33, 22, 55, 44]],
        dtype=torch.float64,
    ),
    torch.tensor([[7, 7, 8, 8], [60, 60, 80, 80], [0, 28, 41, 30]], dtype=torch.float64),
]


@pytest.mark.parametrize(("output_size", "context"), [(1, 0), (8, 0), (8, 2), (21, 5), (64, 4)])
def test_roi_warp_equals_the_definition(output_size: int, context: int) -> None:
    expected = by_hand(reference.roi_warp, IMAGES, CROPS, output_size, context)
    assert_close(roi_warp(IMAGES, CROPS, output_size, context=context), expected)


class Warp(nn.Module):
    def __init__(self, output_size: int, context: int) -> None:
        super().__init__()
        self.output_size, self.context = output_size, context

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        return roi_warp(images, boxes, self.output_size, context=self.context)


@cache
def warp_program(output_size: int, context: int) -> nn.Module:
    """As an exported program has it: for any number of images, of any size, and any number of boxes."""
    shapes = ({0: Dim("images"), 2: Dim("height"), 3: Dim("width")}, {0: Dim("boxes")})
    inputs = (torch.zeros(2, 3, 20, 24, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.float64))
    return torch.export.export(Warp(output_size, context), inputs, dynamic_shapes=shapes, strict=False).module()


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    corners=st.lists(st.tuples(*[st.floats(-60, 60, width=32)] * 2), min_size=2, max_size=5),
    sides=st.sampled_from([(0.0, 0.0), (0.3, 25.0), (30.0, 1e-3), (17.0, 9.0), (300.0, 500.0)]),
    form=st.sampled_from([(1, 0), (9, 2)]),
)
def test_a_program_warps_the_same(
    size: tuple[int, int],
    corners: list[tuple[float, float]],
    sides: tuple[float, float],
    form: tuple[int, int],
) -> None:
    """Boxes inside, outside, thin and larger than the image, of several images in any order."""
    images = random_features(2, 3, *size, seed=size[0])
    corner = torch.tensor(corners, dtype=torch.float64)
    image = torch.arange(len(corner), 0, -1)[:, None] % 2
    rois = torch.cat([image, corner, corner + torch.tensor(sides)], dim=1)
    expected = roi_warp(images, rois, form[0], context=form[1])
    assert_close(warp_program(*form)(images, rois), expected, atol=1e-9, rtol=1e-9)


def rois_of(boxes: list[Tensor]) -> Tensor:
    """`[P, 5]` with the image first."""
    return torch.cat([torch.cat([part.new_full((len(part), 1), i), part], dim=1) for i, part in enumerate(boxes)])


@pytest.mark.parametrize(
    ("features", "boxes", "pool"),
    [
        (FEATURES, BOXES, lambda features, boxes: roi_pool(features, boxes, 3, 1 / 8)),
        (FEATURES, BOXES, lambda features, boxes: roi_align(features, boxes, 3, 1 / 8)),
        (IMAGES, CROPS, lambda images, boxes: roi_warp(images, boxes, 8, context=2)),
        (
            [FEATURES, FEATURES[:, :, ::2, ::2]],
            BOXES,
            lambda levels, boxes: multilevel_roi_align(levels, boxes, (8, 16), 3, canonical_size=40, canonical_level=4),
        ),
    ],
    ids=["roi_pool", "roi_align", "roi_warp", "multilevel_roi_align"],
)
def test_boxes_in_one_tensor_are_the_same_as_a_list(features, boxes: list[Tensor], pool) -> None:
    """In any order of the images."""
    rois, pooled = rois_of(boxes), pool(features, boxes)
    assert torch.equal(pool(features, rois), pooled)
    order = torch.randperm(len(rois), generator=torch.Generator().manual_seed(0))
    assert torch.equal(pool(features, rois[order]), pooled[order])


def test_a_warped_box_of_the_output_size_is_the_crop() -> None:
    box = torch.tensor([[4.0, 6.0, 20.0, 22.0]])
    crop = roi_warp(IMAGES[:1], [box], 16)[0]
    assert_close(crop, IMAGES[0, :, 6:22, 4:20])
    with_context = roi_warp(IMAGES[:1], [box], 20, context=2)[0]
    assert_close(with_context, IMAGES[0, :, 4:24, 2:22])


def test_a_warped_box_shows_zeros_beyond_the_image() -> None:
    crop = roi_warp(torch.ones(1, 3, 10, 10), [torch.tensor([[-5.0, 0.0, 5.0, 10.0]])], 10)[0]
    assert_close(crop, torch.ones(3, 10, 10) * (torch.arange(10) >= 5))


def test_a_stretch_is_opencvs() -> None:
    """Bilinear between pixel centres, the border repeated."""
    cv2 = pytest.importorskip("cv2")
    image = IMAGES[0, 0].float()
    crop = roi_warp(image[None, None], [torch.tensor([[2.0, 3.0, 12.0, 28.0]])], 17)[0, 0]
    assert_close(crop, torch.from_numpy(cv2.resize(image[3:28, 2:12].numpy(), (17, 17))), atol=1e-4, rtol=0)


def test_roi_warp_refuses_a_context_without_a_box() -> None:
    with pytest.raises(ValueError, match="context: expected at least 0 and less than half of 8, got 4"):
        roi_warp(IMAGES, CROPS, 8, context=4)


def test_aligned_reads_pixel_centres() -> None:
    """The cell at index 1 has its centre at 1.5 cells: a box of that one cell gives its value, no mixture."""
    features = torch.arange(4.0).repeat(4, 1)[None, None]
    box = [torch.tensor([[8.0, 8.0, 16.0, 16.0]])]
    assert roi_align(features, box, 1, 1 / 8, sampling_ratio=1).item() == 1
    assert roi_align(features, box, 1, 1 / 8, sampling_ratio=1, aligned=False).item() == 1.5


@pytest.mark.parametrize("pool", [roi_pool, roi_align])
def test_differentiates_in_the_features(pool) -> None:
    features = random_features(1, 1, 5, 6).requires_grad_()
    boxes = [random_boxes(2, size=40)]
    assert torch.autograd.gradcheck(lambda f: pool(f, boxes, 2, 1 / 8), features)


def pyramid(channels: int = 3) -> list[Tensor]:
    return [random_features(2, channels, SIZE // stride, SIZE // stride, seed=stride).float() for stride in STRIDES]


def boxes_of_all_levels() -> list[Tensor]:
    small, large = random_boxes(20, size=100).float(), random_boxes(20, size=SIZE, min_side=200, seed=1).float()
    return [
        torch.cat((large[:12], small[:9])),
        torch.cat((small[9:], large[12:], large.new_tensor([[0, 0, 640, 640]]))),
    ]


def torchvision_align(features: list[Tensor], boxes: list[Tensor]) -> Tensor:
    """The strides follow from the sizes of features and images."""
    named = {str(i): level for i, level in enumerate(features)}
    return torchvision.ops.MultiScaleRoIAlign(list(named), 7, sampling_ratio=2)(named, boxes, [(SIZE, SIZE)] * 2)


def align(features: list[Tensor], boxes: list[Tensor], strides=STRIDES) -> Tensor:
    return multilevel_roi_align(features, boxes, strides, 7, sampling_ratio=2, aligned=False)


def test_multilevel_equals_torchvision_in_value_and_gradient() -> None:
    boxes = boxes_of_all_levels()
    assert set(feature_levels(torch.cat(boxes), STRIDES).tolist()) == {0, 1, 2, 3}
    features, reference_features = ([level.requires_grad_() for level in pyramid()] for _ in range(2))
    actual, expected = align(features, boxes), torchvision_align(reference_features, boxes)
    assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1))
    (actual * weight).sum().backward()
    (expected * weight).sum().backward()
    for level, expected_level in zip(features, reference_features, strict=True):
        assert_close(level.grad, expected_level.grad)


def test_multilevel_keeps_the_order_of_the_boxes() -> None:
    features, boxes = pyramid(), boxes_of_all_levels()
    together = align(features, boxes)
    for image, image_boxes in enumerate(boxes):
        for i, box in enumerate(image_boxes):
            alone = [box[None] if j == image else box.new_zeros(0, 4) for j in range(len(boxes))]
            assert together[image * len(boxes[0]) + i].equal(align(features, alone)[0])


def test_one_level_takes_every_box() -> None:
    features, boxes = pyramid()[1:2], boxes_of_all_levels()
    expected = roi_align(features[0], boxes, 7, 1 / 8, sampling_ratio=2, aligned=False)
    assert align(features, boxes, (8,)).equal(expected)
    assert_close(align(features, boxes, (8,)), torchvision_align(features, boxes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("levels", [1, 4])
def test_no_boxes_give_an_empty_result_with_a_gradient(levels: int) -> None:
    features = [level.requires_grad_() for level in pyramid()[:levels]]
    pooled = align(features, [torch.zeros(0, 4)] * 2, STRIDES[:levels])
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert all(level.grad.eq(0).all() for level in features)


def test_a_level_without_boxes_has_a_zero_gradient() -> None:
    features = [level.requires_grad_() for level in pyramid()]
    align(features, [torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(0, 4)]).sum().backward()
    assert features[0].grad.abs().sum() > 0
    assert all(level.grad.eq(0).all() for level in features[1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_are_pooled_in_float32(dtype: torch.dtype) -> None:
    """Half precision boxes would be wrong by a pixel above 1024."""
    features, boxes = [level.to(dtype) for level in pyramid()], boxes_of_all_levels()
    wide = [level.float() for level in features]
    assert align(features, boxes).equal(align(wide, boxes).to(dtype))
    assert roi_pool(features[0], boxes, 7, 1 / 4).equal(roi_pool(wide[0], boxes, 7, 1 / 4).to(dtype))


def test_autocast_may_mix_the_dtypes_of_levels() -> None:
    features, boxes = pyramid(), boxes_of_all_levels()
    features[1] = features[1].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        first_is_float, first_is_half = align(features, boxes), align([features[0].bfloat16(), *features[1:]], boxes)
    assert first_is_float.dtype == torch.float32
    assert first_is_half.dtype == torch.bfloat16
    assert_close(first_is_half.float(), first_is_float, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_levels_equal_the_definition_and_torchvision(seed: int) -> None:
    exact = torch.tensor([[0.0, 0, 2**n * 7, 2**n * 7] for n in range(1, 9)])  # the borders between levels
    boxes = torch.cat((random_boxes(200, size=2000, seed=seed).float(), exact))
    levels = feature_levels(boxes, STRIDES)
    assert levels.tolist() == [reference.feature_level(box, 4, 2) for box in boxes.tolist()]
    assert levels.equal(LevelMapper(2, 5)([boxes]))
    assert levels.dtype == torch.int64


def test_levels_by_hand() -> None:
    sides = torch.tensor([0.0, 10, 111, 112, 223, 224, 447, 448, 5000])
    boxes = torch.stack((torch.zeros(9), torch.zeros(9), sides, sides), dim=1)
    assert feature_levels(boxes, STRIDES).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert feature_levels(boxes, (8, 16)).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert feature_levels(boxes, STRIDES, canonical_size=112).tolist() == [0, 0, 1, 2, 2, 3, 3, 3, 3]
    assert feature_levels(boxes[:0], STRIDES).shape == (0,)


def test_of_levels_with_one_stride_the_first_is_used() -> None:
    features = [random_features(2, 3, 20, 20, seed=seed).float() for seed in (0, 1)]
    boxes = boxes_of_all_levels()
    assert_close(align(features, boxes, (32, 32)), torchvision_align(features, boxes), atol=1e-5, rtol=1e-5)

    sides = torch.tensor([100.0, 200, 400, 800])
    squares = torch.stack((torch.zeros(4), torch.zeros(4), sides, sides), dim=1)
    assert feature_levels(squares, (8, 16, 16, 32)).tolist() == [0, 0, 1, 3]


def test_wrong_arguments_are_named() -> None:
    features, boxes = pyramid(), boxes_of_all_levels()
    for strides in ((4, 16), (6, 12), (16, 8), (4, 16, 8, 16)):
        with pytest.raises(ValueError, match="expected powers of two without a gap, finest first, got") as error:
            feature_levels(boxes[0], strides)
        assert str(error.value).endswith(str(list(strides)))
    with pytest.raises(ValueError, match=r"expected 2 tensors \[P, 4\], got \[\[21, 4\]\]"):
        roi_align(features[0], boxes[:1], 7, 1 / 4)
    with pytest.raises(ValueError, match=r"expected 2 tensors \[P, 4\], got \[\[3, 5\], \[0, 4\]\]"):
        roi_pool(features[0], [torch.zeros(3, 5), torch.zeros(0, 4)], 7, 1 / 4)
    with pytest.raises(ValueError, match=r"expected \[P, 5\] with the image first, got \[21, 4\]"):
        roi_align(features[0], boxes[0], 7, 1 / 4)
    with pytest.raises(ValueError, match="one for each of the 4 strides, got 3"):
        multilevel_roi_align(features[:3], boxes, STRIDES, 7)

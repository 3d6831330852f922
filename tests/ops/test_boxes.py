import pytest
import torch
import torchvision
from torch.testing import assert_close

from detkit.ops.boxes import (
    box_area,
    box_sides,
    clip_boxes,
    clip_to_windows,
    cxcywh_to_xyxy,
    valid_boxes,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from tests.ops.cases import BOXES, random_boxes
from tests.reference import iou as reference

BOX = torch.tensor([[10.0, 20.0, 40.0, 60.0]])


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("name", BOXES)
def test_area_is_the_product_of_the_sides(name: str, inclusive: bool) -> None:
    boxes = BOXES[name]
    expected = torch.tensor([reference.area(box, inclusive) for box in boxes.tolist()], dtype=torch.float64)
    assert_close(box_area(boxes, inclusive=inclusive), expected)


def test_one_inclusive_pixel_has_area_one() -> None:
    pixel = torch.tensor([[3.0, 4.0, 3.0, 4.0]])
    assert box_area(pixel).item() == 0
    assert box_area(pixel, inclusive=True).item() == 1


def test_an_inverted_box_has_no_area() -> None:
    assert box_area(torch.tensor([[4.0, 4.0, 1.0, 1.0], [4.0, 0.0, 1.0, 9.0]])).tolist() == [0, 0]


def test_the_area_of_a_large_half_box_does_not_overflow() -> None:
    assert box_area(torch.tensor([[0, 0, 1000, 1000]], dtype=torch.float16)).item() == 1e6


def test_area_differentiates() -> None:
    assert torch.autograd.gradcheck(box_area, random_boxes(3).requires_grad_())


def test_sides_are_width_then_height() -> None:
    assert [side.item() for side in box_sides(BOX)] == [30, 40]
    assert [side.item() for side in box_sides(BOX, inclusive=True)] == [31, 41]


def test_clip_takes_height_then_width() -> None:
    boxes = torch.tensor([[-5.0, -6.0, 500.0, 600.0], [10.0, 20.0, 30.0, 40.0], [300.0, 300.0, 400.0, 400.0]])
    expected = [[0, 0, 200, 100], [10, 20, 30, 40], [200, 100, 200, 100]]
    assert clip_boxes(boxes, (100, 200)).tolist() == expected
    assert boxes[0, 0] == -5, "the input is left alone"


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (2, 3, 4)])
def test_clip_is_torchvisions(shape: tuple[int, ...]) -> None:
    boxes = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100
    assert clip_boxes(boxes, (50, 70)).equal(torchvision.ops.clip_boxes_to_image(boxes, (50, 70)))


def test_clip_to_windows_by_hand() -> None:
    windows = torch.tensor([[0.0, 0, 200, 100], [10, 20, 30, 40], [10, 20, 30, 40], [5, 5, 5, 5]])
    boxes = torch.tensor([[-5.0, -6, 500, 600], [12, 15, 25, 50], [40, 50, 60, 70], [0, 0, 9, 9]])
    expected = [[0, 0, 200, 100], [12, 20, 25, 40], [30, 40, 30, 40], [5, 5, 5, 5]]
    assert clip_to_windows(boxes, windows).tolist() == expected
    assert boxes[0, 0] == -5, "the input is left alone"


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (2, 3, 4)])
def test_one_window_for_all_clips_as_clip_boxes(shape: tuple[int, ...]) -> None:
    boxes = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100
    assert clip_to_windows(boxes, torch.tensor([0.0, 0, 70, 50])).equal(clip_boxes(boxes, (50, 70)))


def test_wrong_windows_are_named() -> None:
    with pytest.raises(ValueError, match=r"windows: expected boxes \[\.\.\., 4\], got \[2\]"):
        clip_to_windows(BOX, torch.zeros(2))


def test_the_formats_by_hand() -> None:
    assert xyxy_to_cxcywh(BOX).tolist() == [[25, 40, 30, 40]]
    assert xyxy_to_xywh(BOX).tolist() == [[10, 20, 30, 40]]
    assert cxcywh_to_xyxy(torch.tensor([[25.0, 40.0, 30.0, 40.0]])).equal(BOX)
    assert xywh_to_xyxy(torch.tensor([[10.0, 20.0, 30.0, 40.0]])).equal(BOX)


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize(("there", "back"), [(xyxy_to_cxcywh, cxcywh_to_xyxy), (xyxy_to_xywh, xywh_to_xyxy)])
def test_formats_round_trip(there, back, name: str) -> None:
    assert_close(back(there(BOXES[name])), BOXES[name])


def test_valid_boxes_have_both_sides_of_at_least_the_minimum() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [0, 0, 3.9, 4], [0, 0, 9, 9], [9, 9, 0, 0]])
    assert valid_boxes(boxes, 4).tolist() == [True, False, False, True, False]
    assert valid_boxes(boxes[:0], 4).shape == (0,)


@pytest.mark.parametrize("op", [box_area, box_sides, xyxy_to_cxcywh, cxcywh_to_xyxy, xyxy_to_xywh, xywh_to_xyxy])
def test_a_wrong_shape_is_named(op) -> None:
    with pytest.raises(ValueError, match=r"expected boxes \[\.\.\., 4\], got \[3, 5\]"):
        op(torch.zeros(3, 5))

"""Every op on tensors of any dtype, default dtype, default device and memory layout: what float64 gives, to rounding.

The inputs are whole numbers up to 250, which uint8 and bfloat16 hold exactly, so that only the arithmetic can differ.
Their sums and products do overflow in uint8 and float16.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from detkit.ops import anchors, boxes, coders, iou, nms, roi, rows

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32, torch.float64, torch.uint8, torch.int32, torch.int64)


def whole(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    """float64 of random whole numbers, both ends included."""
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).double()


def whole_boxes(count: int, seed: int = 0) -> Tensor:
    """float64 `[count, 4]` xyxy in an image of 250 px, the sides 8 to 150 px."""
    corners = whole(0, 100, count, 2, seed=seed)
    return torch.cat((corners, corners + whole(8, 150, count, 2, seed=seed + 1)), dim=1)


BOXES, OTHERS = whole_boxes(24), whole_boxes(24, seed=2)
INVERTED = torch.cat((BOXES, BOXES[:4, [2, 3, 0, 1]]))
SIDES = whole(1, 250, 24, 4)  # two points or sizes a row, as cxcywh and xywh have
SCORES = torch.randperm(24, generator=torch.Generator().manual_seed(0)).double()  # no two are equal
LABELS = whole(0, 2, 24).long()
FINE, COARSE = whole(0, 9, 2, 3, 32, 32), whole(0, 9, 2, 3, 16, 16)
ROIS = torch.cat((whole(0, 1, 24, 1), BOXES), dim=1)
SMALL_ROIS = torch.cat((ROIS[:, :1], BOXES // 8), dim=1)  # in pixels of FINE
SOFT = {"iou_threshold": 0.35, "sigma": 0.5, "score_threshold": 0.3}

# name: (the op, its arguments, of which the tensors are varied, and its options)
Case = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
CASES: dict[str, Case] = {
    "box_area": (boxes.box_area, (INVERTED,), {}),
    "box_area inclusive": (boxes.box_area, (INVERTED,), {"inclusive": True}),
    "box_sides": (boxes.box_sides, (INVERTED,), {}),
    "clip_boxes": (boxes.clip_boxes, (BOXES,), {"size": (1000, 90)}),
    "clip_to_windows": (boxes.clip_to_windows, (BOXES, OTHERS), {}),
    "xyxy_to_cxcywh": (boxes.xyxy_to_cxcywh, (BOXES,), {}),
    "cxcywh_to_xyxy": (boxes.cxcywh_to_xyxy, (SIDES,), {}),
    "xyxy_to_xywh": (boxes.xyxy_to_xywh, (INVERTED,), {}),
    "xywh_to_xyxy": (boxes.xywh_to_xyxy, (SIDES,), {}),
    "valid_boxes": (boxes.valid_boxes, (INVERTED,), {"min_size": 49.5}),
    "nms": (nms.nms, (BOXES, SCORES), {"iou_threshold": 0.35}),
    "class_aware_nms": (nms.class_aware_nms, (BOXES, SCORES, LABELS), {"iou_threshold": 0.35}),
    "traceable_nms": (nms.traceable_nms, (BOXES, SCORES, LABELS), {"iou_threshold": 0.35}),
    "diou_nms": (nms.diou_nms, (BOXES, SCORES, LABELS), {"iou_threshold": 0.35}),
    "soft_nms linear": (nms.soft_nms, (BOXES, SCORES, LABELS), {"method": "linear", **SOFT}),
    "soft_nms gaussian": (nms.soft_nms, (BOXES, SCORES, LABELS), {"method": "gaussian", **SOFT}),
    "class_aware_merge": (nms.class_aware_merge, (BOXES, whole(0, 1, 24), LABELS), {"iou_threshold": 0.35}),
    "roi_pool": (roi.roi_pool, (FINE, ROIS), {"output_size": 3, "spatial_scale": 1 / 8}),
    "roi_align": (roi.roi_align, (FINE, ROIS), {"output_size": 3, "spatial_scale": 1 / 8}),
    "roi_align of lists": (roi.roi_align, (FINE, [BOXES, OTHERS]), {"output_size": 3, "spatial_scale": 1 / 8}),
    "multilevel_roi_align": (
        roi.multilevel_roi_align,
        ([FINE, COARSE], ROIS),
        {"strides": (8, 16), "output_size": 3, "canonical_size": 80},
    ),
    "feature_levels": (roi.feature_levels, (BOXES,), {"strides": (8, 16), "canonical_size": 80}),
    "feature_levels of equal strides": (roi.feature_levels, (BOXES,), {"strides": (8, 16, 16), "canonical_size": 80}),
    "roi_warp": (roi.roi_warp, (FINE, SMALL_ROIS), {"output_size": 6, "context": 1}),
    "encode": (coders.BoxCoder().encode, (BOXES, OTHERS), {}),
    "encode inclusive": (coders.BoxCoder(inclusive=True).encode, (BOXES, OTHERS), {}),
    "decode": (coders.BoxCoder().decode, (whole(0, 3, 24, 4), BOXES), {}),
    "decode of classes": (coders.BoxCoder((10, 10, 5, 5)).decode, (whole(0, 30, 24, 2, 4), BOXES), {}),
    "decode on a grid": (
        coders.GridCoder(1.2).decode,
        (whole(0, 4, 24, 4), whole(0, 200, 24, 2), whole(1, 250, 24, 2), whole(1, 64, 24, 1)),
        {},
    ),
    "grid_anchors": (anchors.grid_anchors, (BOXES,), {"feature_size": (3, 2), "stride": 100, "offset": 0.5}),
    "ranks_in_groups": (rows.ranks_in_groups, (LABELS,), {"num_groups": 300}),
    "ranks_in_groups of one": (rows.ranks_in_groups, (torch.zeros_like(LABELS),), {"num_groups": 1}),
    "to_rows": (rows.to_rows, ([BOXES, SCORES], LABELS), {"num_images": 3, "limit": 100}),
}
OVERLAPS = (
    *(iou.box_iou, iou.box_iof, iou.generalized_box_iou),
    *(iou.distance_box_iou, iou.complete_box_iou, iou.scylla_box_iou),
)
for function in OVERLAPS:
    for options in ({}, {"paired": True}, {"inclusive": True}):
        CASES[" ".join((function.__name__, *options))] = (function, (BOXES, OTHERS), options)
cases = pytest.mark.parametrize("name", CASES)

WITHOUT_TENSORS = {anchors.cell_anchors, anchors.prior_anchors}
HELPERS = {boxes.at_least_float32, boxes.check_boxes}
POOLING = {roi.roi_pool, roi.roi_align, roi.multilevel_roi_align, roi.roi_warp}


def arguments_of(name: str) -> list[Tensor]:
    return [tensor.clone() for tensor in tree_leaves(CASES[name][1])]


def run(name: str, tensors: list[Tensor]) -> list[Tensor]:
    """The tensors that the op returns for these arguments."""
    op, arguments, options = CASES[name]
    return tree_leaves(op(*tree_unflatten(tensors, tree_flatten(arguments)[1]), **options))


def to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels, which are int64, become integers only."""
    return tensor if tensor.dtype == torch.int64 and dtype.is_floating_point else tensor.to(dtype)


def tolerance(features: Tensor, dtype: torch.dtype) -> float:
    """Of the values pooled from features, which are four-dimensional and give their dtype; all else is float32."""
    return torch.finfo(dtype).eps if features.ndim == 4 and dtype in HALVES else 1e-5


def check(name: str, actual: list[Tensor], expected: list[Tensor], rtol: float = 1e-5) -> None:
    for value, value64 in zip(actual, expected, strict=True):
        assert value.device.type == "cpu"
        if CASES[name][0] is not rows.to_rows:  # which only moves values
            assert value.is_floating_point() == value64.is_floating_point()
            assert value.dtype not in HALVES or CASES[name][0] in POOLING
        assert_close(value.double(), value64.double(), rtol=rtol, atol=rtol * 10)


def test_every_public_function_of_ops_is_here() -> None:
    def public(module: ModuleType) -> set[Callable[..., Any]]:
        functions = inspect.getmembers(module, inspect.isfunction)
        return {value for name, value in functions if name[0] != "_" and value.__module__ == module.__name__}

    functions = set.union(*map(public, (anchors, boxes, coders, iou, nms, roi, rows)))
    assert functions - WITHOUT_TENSORS - HELPERS <= {op for op, _, _ in CASES.values()}


@cases
def test_any_dtype(name: str) -> None:
    for dtype in DTYPES:
        tensors = arguments_of(name)
        actual = run(name, [to_dtype(tensor, dtype) for tensor in tensors])
        check(name, actual, run(name, tensors), tolerance(tensors[0], dtype))


@cases
def test_each_argument_in_a_dtype_of_its_own(name: str) -> None:
    expected = run(name, arguments_of(name))
    for rest in (torch.float32, torch.float64):
        for dtype in DTYPES:
            for place, tensor in enumerate(arguments_of(name)):
                tensors = [to_dtype(other, rest) for other in arguments_of(name)]
                tensors[place] = to_dtype(tensor, dtype)
                check(name, run(name, tensors), expected, tolerance(tensor, dtype))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def with_gradients(name: str, dtype: torch.dtype) -> list[Tensor]:
    """What the op returns, and the gradients of its arguments."""
    tensors = [to_dtype(tensor, dtype) for tensor in arguments_of(name)]
    leaves = [tensor.requires_grad_() for tensor in tensors if tensor.is_floating_point()]
    outputs = run(name, tensors)
    roots = [output for output in outputs if output.requires_grad]
    if not roots:
        return outputs
    slopes = [torch.arange(root.numel(), dtype=root.dtype, device="cpu").view(root.shape) for root in roots]
    gradients = torch.autograd.grad(roots, leaves, slopes, allow_unused=True)
    return [*outputs, *(gradient for gradient in gradients if gradient is not None)]


@cases
@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
def test_any_default_dtype(name: str, default: torch.dtype) -> None:
    for dtype in (torch.float32, torch.int32):
        expected = with_gradients(name, dtype)
        with default_dtype(default):
            actual = with_gradients(name, dtype)
        for value, value_before in zip(actual, expected, strict=True):
            assert value.dtype == value_before.dtype
            assert torch.equal(value, value_before)


@cases
def test_any_default_device(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        with torch.device("meta"):
            actual = with_gradients(name, dtype)
        check(name, actual, with_gradients(name, dtype))


@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
def test_anchors_are_float32_whatever_the_default(default: torch.dtype) -> None:
    def shapes() -> list[Tensor]:
        return [anchors.cell_anchors([32, 47.3], [0.5, 3]), anchors.prior_anchors(30.1, 60.7, [2, 3], largest=55.5)]

    expected = shapes()
    with default_dtype(default):
        actual = shapes()
    assert all(value.dtype == torch.float32 for value in actual)
    assert all(map(torch.equal, actual, expected))


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def with_steps(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, tensor + 1), dim=-1).flatten(-2)[..., ::2]


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand(tensor.shape)


def negated(tensor: Tensor) -> Tensor:
    """A view with the negative bit, which NumPy cannot read."""
    return torch.imag(torch.complex(tensor, -tensor).conj()) if tensor.is_floating_point() else tensor


def of_inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


def requiring_a_gradient(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_(tensor.is_floating_point())


def parameter(tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def empty(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 4 else tensor[:0]  # features stay


LAYOUTS = [transposed, with_steps, expanded, negated, of_inference, requiring_a_gradient, parameter, empty]


@cases
def test_any_layout(name: str) -> None:
    for layout, dtype in product(LAYOUTS, (torch.float32, torch.float64)):
        tensors = [layout(to_dtype(tensor, dtype)) for tensor in arguments_of(name)]
        plain = [torch.tensor(tensor.tolist(), dtype=tensor.dtype).view(tensor.shape) for tensor in tensors]
        check(name, run(name, tensors), run(name, plain))


@pytest.mark.parametrize("pool", [roi.roi_pool, roi.roi_align])
def test_regions_of_inference_beside_features_that_learn(pool: Callable[..., Tensor]) -> None:
    features = FINE.float().requires_grad_()
    pool(features, of_inference(ROIS.float()), output_size=3, spatial_scale=1 / 8).sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_the_negated_view_is_one() -> None:
    assert negated(BOXES).is_neg()
    assert torch.equal(negated(BOXES), BOXES)

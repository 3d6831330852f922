"""Every op gives on CUDA what it gives on the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkit.ops import anchors, boxes, coders, iou, nms, roi, rows
from tests.ops.cases import degenerate_boxes, random_boxes

pytestmark = pytest.mark.gpu

BOXES = torch.cat((random_boxes(300), degenerate_boxes())).float()
SCORES = torch.rand(len(BOXES), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 5, (len(BOXES),), generator=torch.Generator().manual_seed(1))
DELTAS = torch.randn(len(BOXES), 4, generator=torch.Generator().manual_seed(2))
PYRAMID = [torch.randn(1, 4, 128 // s, 128 // s, generator=torch.Generator().manual_seed(s)) for s in (4, 8, 16)]
SOFT = {"iou_threshold": 0.3, "sigma": 0.5, "score_threshold": 0.01}

OPS: dict[str, Callable[[Callable[[Tensor], Tensor]], object]] = {
    "area": lambda to: boxes.box_area(to(BOXES)),
    "clip": lambda to: boxes.clip_boxes(to(BOXES), (50, 60)),
    "valid": lambda to: boxes.valid_boxes(to(BOXES), 8),
    "cxcywh": lambda to: boxes.xyxy_to_cxcywh(to(BOXES)),
    "iou": lambda to: iou.box_iou(to(BOXES), to(BOXES)),
    "iof": lambda to: iou.box_iof(to(BOXES), to(BOXES), inclusive=True),
    "giou": lambda to: iou.generalized_box_iou(to(BOXES), to(BOXES)),
    "ciou": lambda to: iou.complete_box_iou(to(BOXES), to(BOXES)),
    "nms": lambda to: nms.nms(to(BOXES), to(SCORES), 0.5),
    "class_aware_nms": lambda to: nms.class_aware_nms(to(BOXES), to(SCORES), to(LABELS), 0.5),
    "class_aware_nms, empty": lambda to: nms.class_aware_nms(to(BOXES[:0]), to(SCORES[:0]), to(LABELS[:0]), 0.5),
    "soft_nms": lambda to: nms.soft_nms(to(BOXES), to(SCORES), to(LABELS), method="gaussian", **SOFT),
    "grid_anchors": lambda to: anchors.grid_anchors(to(BOXES[:3]), (4, 5), 8),
    "roi_pool": lambda to: roi.roi_pool(to(PYRAMID[0]), [to(BOXES)], 7, 1 / 4),
    "class_aware_merge": lambda to: nms.class_aware_merge(to(BOXES), to(SCORES), to(LABELS), 0.3),
    "roi_warp": lambda to: roi.roi_warp(to(PYRAMID[0]), [to(BOXES)], 17, context=3),
    "roi_align": lambda to: roi.multilevel_roi_align([to(f) for f in PYRAMID], [to(BOXES)], (4, 8, 16), 7),
    "roi_align, half": lambda to: roi.multilevel_roi_align([to(f).half() for f in PYRAMID], [to(BOXES)], (4, 8, 16), 7),
    "to_rows": lambda to: rows.to_rows([to(SCORES), to(BOXES)], to(LABELS), 5, 20),
    "encode": lambda to: coders.BoxCoder().encode(to(BOXES[:300]), to(BOXES[:300].flip(0))),
    "decode": lambda to: coders.BoxCoder().decode(to(DELTAS), to(BOXES)),
}


@pytest.mark.parametrize("name", OPS)
def test_cuda_equals_the_cpu(name: str) -> None:
    tolerance = 2e-3 if "half" in name else 1e-4  # a half has 11 bits
    on_cuda, on_cpu = OPS[name](lambda t: t.cuda()), OPS[name](lambda t: t)
    assert_close(on_cuda, on_cpu, check_device=False, rtol=tolerance, atol=tolerance)

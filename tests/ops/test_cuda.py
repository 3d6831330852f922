"""Every op gives on CUDA what it gives on the CPU."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkit.ops import anchors, boxes, coders, iou, keypoints, masks, nms, roi, rows, suppress, tubelets
from detkit.ops.deformable_attention import Sampling, deformable_attention
from detkit.structures import MaskCrops
from tests.ops.cases import degenerate_boxes, random_boxes

pytestmark = pytest.mark.gpu

BOXES = torch.cat((random_boxes(300), degenerate_boxes())).float()
SCORES = torch.rand(len(BOXES), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 5, (len(BOXES),), generator=torch.Generator().manual_seed(1))
DELTAS = torch.randn(len(BOXES), 4, generator=torch.Generator().manual_seed(2))
PYRAMID = [torch.randn(1, 4, 128 // s, 128 // s, generator=torch.Generator().manual_seed(s)) for s in (4, 8, 16)]
POINTS = torch.rand(300, 3, 3, generator=torch.Generator().manual_seed(3)) * 100
MAPS = torch.randn(20, 3, 14, 14, generator=torch.Generator().manual_seed(4))
SIZES = [(8, 12), (4, 6)]  # (h, w) of two maps, for attention of 5 queries, 2 heads, 3 and 2 points
VALUES = torch.randn(2, 8 * 12 + 4 * 6, 2, 4, generator=torch.Generator().manual_seed(5))
LOCATIONS = torch.rand(2, 5, 2, 5, 2, generator=torch.Generator().manual_seed(6)) * 1.2 - 0.1
WEIGHTS = torch.rand(2, 5, 2, 5, generator=torch.Generator().manual_seed(7))
CROPS = MaskCrops.of([np.ones((9, 7), bool), np.tri(12, 12, dtype=bool)], [[3, 5, 10, 14], [20, 10, 32, 22]])
REGIONS = torch.tensor([[2.0, 4, 12, 15], [18, 11, 33, 20.5]])
TUBELETS = BOXES[:300].view(100, 3, 4)
SOFT = {"iou_threshold": 0.3, "sigma": 0.5, "score_threshold": 0.01}


def attended(to: Callable[[Tensor], Tensor], sampling: Sampling) -> Tensor:
    return deformable_attention(to(VALUES), SIZES, to(LOCATIONS), to(WEIGHTS), [3, 2], sampling)


def mask_targets(to: Callable[[Tensor], Tensor]) -> Tensor:
    crops, window = CROPS.map(torch.from_numpy).map(to), to(torch.tensor([0.0, 0, 40, 30]))
    return masks.mask_targets(crops, to(torch.tensor([0, 1])), to(REGIONS), window, 14)


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
    "box_sides": lambda to: boxes.box_sides(to(BOXES), inclusive=True),
    "clip_to_windows": lambda to: boxes.clip_to_windows(to(BOXES), to(torch.tensor([5.0, 5, 60, 50]))),
    "corners": lambda to: boxes.cxcywh_to_xyxy(to(BOXES)),
    "xywh": lambda to: boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(to(BOXES))),
    "diou": lambda to: iou.distance_box_iou(to(BOXES), to(BOXES)),
    "siou": lambda to: iou.scylla_box_iou(to(BOXES), to(BOXES.flip(0)), paired=True),
    "traceable_nms": lambda to: nms.traceable_nms(to(BOXES), to(SCORES), to(LABELS), 0.5),
    "diou_nms": lambda to: nms.diou_nms(to(BOXES), to(SCORES), to(LABELS), 0.5),
    "suppress": lambda to: suppress.suppress(to(BOXES[None]), to(SCORES[None, None]), 0.5),
    "decomposed_suppress": lambda to: suppress.decomposed_suppress(to(BOXES[None]), to(SCORES[None, None]), 0.5),
    "roi_align, one level": lambda to: roi.roi_align(to(PYRAMID[0]), [to(BOXES)], 7, 1 / 4),
    "feature_levels": lambda to: roi.feature_levels(to(BOXES * 5), (4, 8, 16)),
    "ranks_in_groups": lambda to: rows.ranks_in_groups(to(LABELS), 5),
    "tubelet_iou": lambda to: tubelets.tubelet_iou(to(TUBELETS), to(TUBELETS)),
    "suppress_tubelets": lambda to: tubelets.suppress_tubelets(to(TUBELETS), 0.3),
    "heatmap_targets": lambda to: keypoints.heatmap_targets(to(POINTS), to(BOXES[:300]), 14),
    "keypoints_of_heatmaps": lambda to: keypoints.keypoints_of_heatmaps(to(MAPS), to(BOXES[:20])),
    "deformable_attention": lambda to: attended(to, "bilinear"),
    "deformable_attention, discrete": lambda to: attended(to, "discrete"),
    "mask_targets": lambda to: mask_targets(to),
    "paste_masks": lambda to: masks.paste_masks(to(MAPS[:2, 0].sigmoid()), to(REGIONS), (30, 40)).pixels,
    "decode": lambda to: coders.BoxCoder().decode(to(DELTAS), to(BOXES)),
}


@pytest.mark.parametrize("name", OPS)
def test_cuda_equals_the_cpu(name: str) -> None:
    tolerance = 2e-3 if "half" in name else 1e-4  # a half has 11 bits
    on_cuda, on_cpu = OPS[name](lambda t: t.cuda()), OPS[name](lambda t: t)
    assert_close(on_cuda, on_cpu, check_device=False, rtol=tolerance, atol=tolerance)

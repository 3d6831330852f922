import subprocess
import sys

import numpy as np
import pytest
import torch
from numba import prange
from torch import Tensor

from detkit.accelerate.compiled import compiled, run, threaded
from detkit.ops import dispatch
from detkit.ops.deformable_attention import deformable_attention
from detkit.ops.iou import box_iou
from detkit.ops.nms import class_aware_nms, nms
from detkit.ops.roi import roi_align
from tests.ops.cases import random_boxes

BOXES = random_boxes(300, size=200).float()
SCORES = torch.rand(300, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(300) % 7
FEATURES = torch.randn(1, 70, 25, 25, generator=torch.Generator().manual_seed(1))


def value_and_gradient(features: Tensor) -> tuple[Tensor, Tensor]:
    """Of RoIAlign in the features."""
    features = features.clone(memory_format=torch.preserve_format).requires_grad_()
    pooled = roi_align(features, [BOXES], 3, 1 / 8, sampling_ratio=2)
    (pooled * pooled.detach().cos()).sum().backward()
    assert features.grad is not None
    return pooled.detach(), features.grad


def attended() -> list[Tensor]:
    """Deformable attention of three queries in two images, and its gradients."""
    torch.manual_seed(2)
    inputs = [torch.randn(2, 20, 4, 8), torch.rand(2, 3, 4, 5, 2), torch.rand(2, 3, 4, 5)]
    tensors = [each.requires_grad_() for each in inputs]
    out = deformable_attention(tensors[0], [(4, 4), (2, 2)], *tensors[1:], [2, 3])
    return [out.detach(), *torch.autograd.grad(out.cos().sum(), tensors)]


def test_the_number_of_threads_changes_nothing() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((box_iou(BOXES.repeat(100, 1), BOXES), *value_and_gradient(FEATURES), *attended()))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_the_memory_format_changes_nothing() -> None:
    plain, channels_last = (
        value_and_gradient(f) for f in (FEATURES, FEATURES.contiguous(memory_format=torch.channels_last))
    )
    assert plain[0].equal(channels_last[0])
    assert plain[1].equal(channels_last[1])


def test_boxes_with_a_gradient_do_not_go_through_numba() -> None:
    boxes = BOXES[:5].clone().requires_grad_()
    box_iou(boxes, BOXES[5:10]).sum().backward()
    assert boxes.grad is not None
    assert box_iou(boxes, BOXES[5:10]).detach().equal(box_iou(BOXES[:5], BOXES[5:10]))


def test_ops_can_be_traced_and_exported() -> None:
    class Ops(torch.nn.Module):
        def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
            return roi_align(features, [boxes], 3, 1 / 8, sampling_ratio=2)

    program = torch.export.export(Ops(), (FEATURES, BOXES))
    torch.testing.assert_close(program.module()(FEATURES, BOXES), Ops()(FEATURES, BOXES), atol=1e-5, rtol=1e-5)


def test_works_in_a_forked_process() -> None:
    """Although the parent has used threads of OpenMP, with which a forked process hangs. Loader workers are forked."""
    code = (
        "import multiprocessing, torch; from detkit.ops.iou import box_iou; torch.set_num_threads(2)\n"
        "b = torch.rand(2000, 4).cumsum(1)\n"
        "def work(): actual = box_iou(b, b); torch.set_num_threads(1); assert actual.equal(expected)\n"
        "expected = box_iou(b, b)\n"
        "child = multiprocessing.get_context('fork').Process(target=work); child.start(); child.join(60)\n"
        "assert child.exitcode == 0, child.exitcode"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@compiled
def _mark(counts: np.ndarray, start: int, end: int) -> None:
    counts[start:end] += 1


@threaded
def _mark_in_parts(counts: np.ndarray, total: int, parts: int) -> None:
    for part in prange(parts):
        _mark(counts, part * total // parts, (part + 1) * total // parts)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [0, 1, 6, 10])
def test_every_part_is_done_once(threads: int, total: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        counts = np.zeros(total, int)
        run(_mark, _mark_in_parts, (counts,), total)
        assert (counts == 1).all()
    finally:
        torch.set_num_threads(before)


def test_kernels_run_on_the_threads_of_torch() -> None:
    """Others would have to share the cores with torch's, which spin when they are idle."""
    code = (
        "import os, torch; from detkit.ops.iou import box_iou; torch.set_num_threads(2)\n"
        "torch.rand(2000, 2000).exp(); b = torch.rand(2000, 4).cumsum(1); box_iou(b[:9], b[:9])\n"
        "before = len(os.listdir('/proc/self/task')); box_iou(b, b); after = len(os.listdir('/proc/self/task'))\n"
        "import numba; assert numba.threading_layer() == 'omp'; assert after == before, (before, after)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_same_boxes_and_order_with_and_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def results() -> list[Tensor]:
        return [
            suppressed
            for threshold in (0.3, 0.7)
            for suppressed in (nms(BOXES, SCORES, threshold), class_aware_nms(BOXES, SCORES, LABELS, threshold))
        ]

    with_kernels = results()
    monkeypatch.setattr(dispatch, "kernels", lambda: None)
    assert all(map(torch.equal, with_kernels, results()))

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from detkit.ops import compiled
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


def test_usable_follows_numba(path: str) -> None:
    assert compiled.usable(BOXES) == (path == "compiled")


def test_the_number_of_threads_changes_nothing() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((box_iou(BOXES.repeat(100, 1), BOXES), *value_and_gradient(FEATURES)))
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


def test_a_box_of_nan_has_an_iou_of_nan_and_suppresses_nothing() -> None:
    boxes = torch.cat((torch.tensor([[float("nan"), 0, 10, 10]]), BOXES[:4]))
    assert box_iou(boxes, BOXES[:4])[0].isnan().all()
    keep = nms(boxes, torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6]), 0.1).tolist()
    assert keep == [0, *(1 + nms(BOXES[:4], SCORES.new_tensor([0.9, 0.8, 0.7, 0.6]), 0.1)).tolist()]


def test_ops_can_be_traced_and_exported() -> None:
    class Ops(torch.nn.Module):
        def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
            return roi_align(features, [boxes], 3, 1 / 8, sampling_ratio=2)

    program = torch.export.export(Ops(), (FEATURES, BOXES))
    torch.testing.assert_close(program.module()(FEATURES, BOXES), Ops()(FEATURES, BOXES), atol=1e-5, rtol=1e-5)


def test_works_in_a_forked_process(path: str) -> None:
    """Although the parent has used threads of OpenMP, with which a forked process hangs. Loader workers are forked."""
    code = (
        "import multiprocessing, torch; from detkit.ops.iou import box_iou; torch.set_num_threads(2)\n"
        "b = torch.rand(2000, 4).cumsum(1)\n"
        "def work(): actual = box_iou(b, b); torch.set_num_threads(1); assert actual.equal(expected)\n"
        "expected = box_iou(b, b)\n"
        "child = multiprocessing.get_context('fork').Process(target=work); child.start(); child.join(60)\n"
        "assert child.exitcode == 0, child.exitcode"
    )
    if path == "compiled":
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("threads", ["torch's", "of Python"])
def test_every_part_runs_once_and_errors_are_raised(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    if threads == "of Python":
        monkeypatch.setattr(compiled, "_gnu_openmp", lambda process: None)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        counts = np.zeros(10, int)

        def work(start: int, end: int) -> None:
            counts[start:end] += 1

        compiled.in_threads(work, 10)
        assert (counts == 1).all()
        with pytest.raises(ZeroDivisionError):
            compiled.in_threads(lambda start, end: 1 // (9 - end), 9)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not compiled._gnu_openmp(os.getpid()), reason="torch works with another library than GNU OpenMP")
def test_parts_run_in_parallel_on_the_threads_of_torch() -> None:
    code = (
        "import os, threading, torch; from detkit.ops.compiled import in_threads; torch.set_num_threads(2)\n"
        "torch.rand(2000, 2000).exp()\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "before, meet, seen = count(), threading.Barrier(2, timeout=60), []\n"
        "in_threads(lambda start, end: (meet.wait(), seen.append(count())), 2)\n"
        "assert seen == [before, before], (before, seen)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_same_boxes_and_order_with_and_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    works = [partial(nms, BOXES, SCORES, t) for t in (0.3, 0.7)]
    works += [partial(class_aware_nms, BOXES, SCORES, LABELS, t) for t in (0.3, 0.7)]
    compiled_results = [work() for work in works]
    monkeypatch.setattr(compiled, "_numba_works", lambda: False)
    assert all(map(torch.equal, compiled_results, (work() for work in works)))

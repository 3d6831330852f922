"""Every detector of `configs/*.yaml` on a CUDA device gives what it gives on the CPU, and learns there."""

from pathlib import Path

import pytest
import torch

from detkit.detectors.build import build_detector
from detkit.structures import Categories
from tests.detectors.batches import CONFIGS, ROOT, cheap_config, enliven, make_batch

pytestmark = pytest.mark.gpu

FILES = [path for path in CONFIGS if path.parent == ROOT / "configs"]


@pytest.fixture(autouse=True)
def exact_convolutions() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_detections_equal_those_of_the_cpu(path: Path) -> None:
    """In float64, because a proposal of a random network on the verge of suppression may fall to either side."""
    torch.manual_seed(0)
    detector = build_detector(cheap_config(path).model, Categories.of_names([f"class {i}" for i in range(6)]))
    enliven(detector)
    detector.eval().double()
    batch = make_batch(detector, [3, 2], targets=False)
    with torch.inference_mode():
        expected = detector.postprocess(detector(batch), batch.infos)
        detector.cuda()
        actual = detector.postprocess(detector(batch.to("cuda")), batch.infos)
    for on_cuda, on_cpu in zip(actual, expected, strict=True):
        assert len(on_cuda) == len(on_cpu) > 0
        torch.testing.assert_close(on_cuda.scores, on_cpu.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(on_cuda.boxes, on_cpu.boxes, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_training_step_runs(path: Path) -> None:
    torch.manual_seed(0)
    detector = build_detector(cheap_config(path).model, Categories.of_names([f"class {i}" for i in range(6)])).cuda()
    batch = make_batch(detector, [3, 0]).to("cuda")
    losses = detector.train().criterion(detector(batch), batch.targets or ())
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)

"""The selection of tubelets against a slow loop over clips and classes, and as an exported program."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detkit.nn.selection import DetectionRows, SelectionConfig
from detkit.nn.tubelet_selection import select_tubelets
from tests.detectors.batches import tensors_of
from tests.reference import tubelets as reference

WINDOWS = torch.tensor([[0.0, 0, 80, 60], [10, 5, 70, 75]])
CONFIGS = [
    SelectionConfig(score_threshold=0.3, top_k_per_class=3, nms_threshold=0.45, max_detections=12),
    SelectionConfig(score_threshold=0.0, top_k_per_class=None, nms_threshold=0.2, max_detections=200),
    SelectionConfig(score_threshold=0.6, top_k_per_class=50, nms_threshold=None, max_detections=9),
]


def make_candidates(count: int = 30, clips: int = 2) -> tuple[Tensor, Tensor]:
    """float64 tubelets of three frames, some of which leave their window in one or in all, and scores of 3 classes."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(clips, count, 1, 2, generator=generator) * 90 - 10
    boxes = torch.cat([corner, corner + 5 + 25 * torch.rand(clips, count, 1, 2, generator=generator)], dim=3)
    move = torch.randn(clips, count, 3, 2, generator=generator).cumsum(dim=2) * 3
    scores = torch.rand(clips, count, 3, generator=generator)
    return (boxes + move.repeat(1, 1, 1, 2)).double(), scores.double()


def select_slowly(
    tubelets: Tensor, scores: Tensor, window: list[float], config: SelectionConfig
) -> list[tuple[float, reference.Tubelet, int]]:
    """(score, tubelet, label) of the detections of one clip, best first."""
    x1, y1, x2, y2 = window
    result = []
    clipped = [
        [(max(a, x1), max(b, y1), min(c, x2), min(d, y2)) for a, b, c, d in tubelet] for tubelet in tubelets.tolist()
    ]
    for label in range(scores.shape[1]):
        rows = [
            row
            for row, tubelet in enumerate(clipped)
            if scores[row, label] > config.score_threshold
            and all(c - a > 0.01 and d - b > 0.01 for a, b, c, d in tubelet)
        ]
        rows = sorted(rows, key=lambda row: -scores[row, label])[: config.top_k_per_class]
        chosen, values = [clipped[row] for row in rows], [float(scores[row, label]) for row in rows]
        threshold = 1.0 if config.nms_threshold is None else config.nms_threshold
        result += [(values[i], chosen[i], label) for i in reference.nms(chosen, values, threshold)]
    return sorted(result, key=lambda row: -row[0])[: config.max_detections]


@pytest.mark.parametrize("config", CONFIGS)
def test_it_equals_the_definition(config: SelectionConfig) -> None:
    tubelets, scores = make_candidates()
    selected = select_tubelets(tubelets, scores, WINDOWS, config)
    for clip, window in enumerate(WINDOWS.tolist()):
        expected = select_slowly(tubelets[clip], scores[clip], window, config)
        count = int(selected.counts[clip])
        assert count == len(expected) > 0
        assert selected.tubes is not None
        torch.testing.assert_close(selected.scores[clip, :count], torch.tensor([row[0] for row in expected]))
        torch.testing.assert_close(selected.tubes[clip, :count], torch.tensor([row[1] for row in expected]))
        assert selected.labels[clip, :count].tolist() == [row[2] for row in expected]
        assert torch.equal(selected.boxes, selected.tubes[:, :, 0])
        assert not selected.tubes[clip, count:].any()
        assert not selected.labels[clip, count:].any()
        assert not selected.scores[clip, count:].any()
    assert selected.tubes is not None
    assert selected.tubes.shape == (2, config.max_detections, 3, 4)
    assert selected.tubes.dtype == selected.scores.dtype == torch.float32


def test_no_candidate_is_no_detection() -> None:
    tubelets, scores = make_candidates()
    selected = select_tubelets(tubelets, torch.zeros_like(scores), WINDOWS, CONFIGS[0])
    assert selected.counts.tolist() == [0, 0]
    assert selected.tubes is not None
    assert not selected.tubes.any()


class Selection(nn.Module):
    def __init__(self, config: SelectionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tubelets: Tensor, scores: Tensor, windows: Tensor) -> DetectionRows:
        return select_tubelets(tubelets, scores, windows, self.config)


@pytest.mark.long
def test_it_is_exported_to_torch_and_onnx(tmp_path: Path) -> None:
    """For any number of clips; the loop of the suppression is part of the program."""
    runtime = pytest.importorskip("onnxruntime")
    batch = {0: torch.export.Dim("batch")}
    tubelets, scores = (value.float() for value in make_candidates(clips=3))
    module = Selection(CONFIGS[0])
    program = torch.export.export(
        module, (tubelets, scores, WINDOWS[[0, 1, 1]]), dynamic_shapes=(batch,) * 3, strict=False
    )
    model = torch.onnx.export(program, dynamo=True, opset_version=21, verbose=False)
    assert model is not None
    model.save(tmp_path / "selection.onnx")
    session = runtime.InferenceSession(tmp_path / "selection.onnx")
    for clips in (1, 3):
        inputs = (tubelets[:clips], scores[:clips], WINDOWS[[0, 1, 1]][:clips])
        expected = tensors_of(module(*inputs))
        assert len(expected) == 5
        names = [value.name for value in session.get_inputs()]
        answers = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        for actual, by_runtime, each in zip(tensors_of(program.module()(*inputs)), answers, expected, strict=True):
            torch.testing.assert_close(actual, each)
            torch.testing.assert_close(torch.from_numpy(by_runtime), each)

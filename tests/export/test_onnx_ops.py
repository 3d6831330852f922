"""Operators in onnxruntime against those in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn

from detkit.export.onnx_ops import OPSET, TRANSLATIONS
from detkit.ops.suppress import suppress
from tests.ops.test_suppress import Suppression, draw


def run(
    module: nn.Module, inputs: tuple[Tensor, ...], shapes: Any, others: tuple[Tensor, ...], folder: Path
) -> np.ndarray:
    """What onnxruntime computes from `others` when the module was exported with `inputs`."""
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    model = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, custom_translation_table=TRANSLATIONS, verbose=False
    )
    model.save(folder / "model.onnx")  # type: ignore[union-attr]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    result: np.ndarray = session.run(None, dict(zip(names, (value.numpy() for value in others), strict=True)))[0]
    return result


@pytest.mark.parametrize("shape", [(2, 3, 20), (5, 3, 200), (1, 3, 1)])
def test_suppression(shape: tuple[int, int, int], tmp_path: Path) -> None:
    sides = {0: torch.export.Dim("groups"), 1: torch.export.Dim("boxes")}
    shapes = (sides, {0: sides[0], 2: sides[1]})
    boxes, scores = draw(*shape, seed=3)
    actual = run(Suppression(), draw(2, 3, 20, seed=0), shapes, (boxes, scores), tmp_path)
    assert actual.dtype == np.bool_
    assert np.array_equal(actual, suppress(boxes, scores, 0.4).numpy())


def test_suppression_without_candidates(tmp_path: Path) -> None:
    boxes, scores = draw(2, 3, 20, seed=0)
    none = torch.full_like(scores, -torch.inf)
    assert not run(Suppression(), (boxes, scores), None, (boxes, none), tmp_path).any()


class RoIPool(nn.Module):
    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        pooled: Tensor = torchvision.ops.roi_pool(features, rois, (3, 2), 1 / 4)
        return pooled


def test_roi_pool(tmp_path: Path) -> None:
    """Boxes that leave the map, are thin, or round at a half; regions of both images."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 12, 10, generator=generator)
    corners = torch.rand(40, 2, generator=generator) * 60 - 15
    boxes = torch.cat([corners, corners + torch.rand(40, 2, generator=generator) * 40], dim=1)
    boxes[:4] = torch.tensor([[2.0, 2, 6, 6], [10, 10, 10, 10], [-50, -50, -40, -40], [6, 6, 30, 14]])
    rois = torch.cat([torch.arange(40)[:, None] % 2, boxes], dim=1)
    shapes = ({0: torch.export.Dim("images")}, {0: torch.export.Dim("regions")})
    example = (torch.randn(3, 5, 12, 10), rois[:7])
    actual = run(RoIPool(), example, shapes, (features, rois), tmp_path)
    expected = torchvision.ops.roi_pool(features, rois, (3, 2), 1 / 4).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)

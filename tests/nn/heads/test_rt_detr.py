"""RT-DETR's head: which layers predict and run, from what boxes they start, which gradients pass, and its losses."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from detkit.nn.deformable import moved
from detkit.nn.heads.denoised import DenoisedOutputs
from detkit.nn.heads.rt_detr import RTDETRHead, RTDETRHeadConfig, RTDETRTransformerConfig
from detkit.nn.losses import MatchabilityLossConfig
from detkit.structures import Objects, Target

SMALL = RTDETRTransformerConfig(width=16, heads=4, decoder_layers=3, feedforward=32, points=2)
CANVAS, SIZES = (64, 96), torch.tensor([[64, 96]])
TARGETS = [Target(Objects(torch.tensor([[10.0, 10, 40, 40], [50, 5, 90, 60]]), torch.tensor([0, 2])))]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_head(**fields: Any) -> RTDETRHead:
    head = RTDETRHead(RTDETRHeadConfig(**{"transformer": SMALL, "num_queries": 9, **fields}), [8, 16], 3)
    for name, parameter in head.named_parameters():
        if "norm" not in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return head


def features() -> list[Tensor]:
    return [torch.randn(1, c, CANVAS[0] // s, CANVAS[1] // s) for c, s in ((8, 8), (16, 16))]


def test_later_layers_can_be_left_out_of_evaluation() -> None:
    head, levels = make_head(layers_at_test=2).eval(), features()
    shorter = head(levels, SIZES, CANVAS)
    head.training = True  # of the head alone, so that its norms keep their statistics
    outputs = head(levels, SIZES, CANVAS)
    assert (outputs.logits.shape, shorter.logits.shape) == ((3, 1, 9, 3), (2, 1, 9, 3))
    torch.testing.assert_close(shorter.boxes, outputs.boxes[:2])
    with pytest.raises(ValidationError, match="layers_at_test: there are 3 decoder layers, found 4"):
        RTDETRHeadConfig(transformer=SMALL, layers_at_test=4)


def test_a_layer_and_the_one_before_it_learn_from_a_prediction_and_no_other() -> None:
    """Look forward twice: the box of the third layer moves with the regressors of the second and the third."""
    head = make_head()
    head(features(), SIZES, CANVAS).boxes[2].sum().backward()
    moving = [regressor.get_parameter("4.weight").grad for regressor in head.regressors]
    assert [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in moving] == [False, True, True]


def test_queries_start_at_the_boxes_and_with_the_content_of_the_likeliest_cells() -> None:
    """Without layers that change anything but the box, the first prediction is that of the cell, moved."""
    head = make_head().eval()
    with torch.no_grad():
        for layer in head.regressors:
            layer.get_parameter("4.weight").zero_()
            layer.get_parameter("4.bias").copy_(torch.tensor([0.5, 0.0, -0.5, 0.0]))
        head.training = True
        outputs = head(features(), SIZES, CANVAS)
    step = torch.tensor([0.5, 0.0, -0.5, 0.0]).expand(1, 9, 4)
    expected = moved(outputs.proposals.boxes[0], step)
    torch.testing.assert_close(outputs.boxes[0], expected)
    torch.testing.assert_close(outputs.boxes[1], moved(expected, step))
    best = outputs.proposals.logits[0, 0].amax(dim=1)
    assert torch.equal(best, best.sort(descending=True).values)


@pytest.mark.parametrize("fields", [{}, {"matchability": MatchabilityLossConfig()}, {"denoising": None}], ids=str)
def test_every_parameter_learns(fields: dict[str, Any]) -> None:
    """From a batch with objects and from one without any: processes wait for each other's gradients."""
    for targets in (TARGETS, [Target(Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))]):
        head = make_head(**fields)
        outputs: DenoisedOutputs = head(features(), SIZES, CANVAS, targets)
        losses = head.criterion(outputs, targets)
        assert all(loss.isfinite() for loss in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_discrete_sampling_trains_no_offsets() -> None:
    head = make_head(transformer=SMALL.model_copy(update={"sampling": "discrete"}))
    losses = head.criterion(head(features(), SIZES, CANVAS, TARGETS), TARGETS)
    torch.stack(list(losses.values())).sum().backward()
    without = {name.rpartition(".")[0] for name, parameter in head.named_parameters() if parameter.grad is None}
    assert without == {f"decoder.{layer}.cross_attention.offsets" for layer in range(3)}


def test_points_are_one_number_for_each_level() -> None:
    head = make_head(transformer=SMALL.model_copy(update={"points": (3, 1)}))
    assert head.decoder[0].get_submodule("cross_attention.weights").out_features == 4 * 4
    with pytest.raises(ValueError, match="points: expected one for each of 2 levels, found 3"):
        make_head(transformer=SMALL.model_copy(update={"points": (3, 1, 1)}))


def test_the_published_selection() -> None:
    config = RTDETRHeadConfig()
    assert (config.selection.max_detections, config.selection.nms_threshold) == (300, None)

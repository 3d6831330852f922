"""Conditional DETR's boxes lie about reference points, and every weight learns."""

import torch

from detkit.nn.heads.conditional_detr import ConditionalDETRHead, ConditionalDETRHeadConfig
from detkit.nn.heads.set_head import DETROutputs
from detkit.nn.transformer import TransformerConfig
from tests.nn.heads.test_dab_detr import CANVAS, SIZES, TARGETS

SMALL = TransformerConfig(width=16, heads=4, encoder_layers=1, decoder_layers=2, feedforward=32, dropout=0.0)


def make_head() -> ConditionalDETRHead:
    torch.manual_seed(0)
    return ConditionalDETRHead(
        ConditionalDETRHeadConfig(transformer=SMALL, num_queries=6), in_channels=8, num_classes=3
    )


def run(head: ConditionalDETRHead) -> DETROutputs:
    return head([torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(1))], SIZES, CANVAS)


def test_fresh_boxes_are_half_the_picture_about_the_reference_points() -> None:
    head = make_head()
    boxes = run(head).boxes
    assert boxes.shape == (2, 2, 6, 4)
    points = head.decoder.reference(head.queries).sigmoid()
    torch.testing.assert_close(boxes[..., :2], points.expand(2, 2, -1, -1))
    assert (boxes[..., 2:] == 0.5).all()


def test_moves_are_before_the_sigmoid() -> None:
    head = make_head()
    with torch.no_grad():
        head.regressor.get_parameter("4.bias").copy_(torch.tensor([1.0, -1.0, 2.0, -2.0]))
    points = head.decoder.reference(head.queries) + torch.tensor([1.0, -1.0])
    boxes = run(head).boxes[0, 0]
    torch.testing.assert_close(boxes, torch.cat([points, torch.tensor([[2.0, -2.0]] * 6)], dim=1).sigmoid())


def test_every_weight_learns() -> None:
    head = make_head().train()
    torch.stack(list(head.criterion(run(head), TARGETS).values())).sum().backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_weights_of_the_loss() -> None:
    """2 for the class, 5 for L1 and 2 for the generalised IoU, as the authors' code; costs 2, 5 and 2."""
    config = ConditionalDETRHeadConfig()
    assert (config.class_weight, config.l1_weight, config.giou_weight) == (2, 5, 2)
    assert (config.class_cost, config.l1_cost, config.giou_cost) == (2, 5, 2)

"""DN-DETR's head in training against its authors' code, on the same features, with denoising queries without noise (the
noise itself has tests in tests/nn/test_denoising.py).

The authors' generalised IoU adds 1e-6 to areas in parts of the picture, which for small boxes is no rounding: here it
does not.
"""

import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou

from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.heads.dab_detr import DABDETRHead, DABDETRHeadConfig, DABTransformerConfig, DNDenoisingConfig
from detkit.nn.transformer import padding_mask
from detkit.structures import Objects, Target
from detkit.weights.dab_detr import convert_keys
from tests.parity.conftest import Ledger
from tests.parity.dn_detr_authors import authors_code

SIZES, CANVAS, CELLS = torch.tensor([[64, 96], [48, 64], [64, 80]]), (64, 96), (4, 6)
TARGETS = [
    Target(Objects(torch.tensor([[10.0, 10, 40, 50], [50, 20, 90, 60]]), torch.tensor([1, 2]))),
    Target(Objects(torch.tensor([[8.0, 12, 40, 36]]), torch.tensor([0]))),
    Target(Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))),
]
CLASSES, CHANNELS, QUERIES, LAYERS = 5, 8, 9, 3
WIDTH = 256  # the authors' sine embedding has no other


class Backbone(nn.Module):
    """Answers with the features that it is given, as the authors' does."""

    num_channels = CHANNELS

    def __init__(self, code: SimpleNamespace) -> None:
        super().__init__()
        self.nested = code.misc.NestedTensor
        self.position = code.position_encoding.PositionEmbeddingSineHW(WIDTH // 2, 20, 20, normalize=True)

    def forward(self, samples: Any) -> tuple[list[Any], list[Tensor]]:
        return [samples], [self.position(samples)]


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "norm" in name:
            continue
        if parameter.dim() > 1 and "conv" not in name:
            nn.init.xavier_uniform_(parameter) if "embed.weight" not in name else parameter.normal_()
        elif parameter.shape != (1,):
            parameter.normal_(std=0.1)
        if "class_embed.bias" in name:
            parameter.sub_(2)


def build_authors(code: SimpleNamespace) -> tuple[Any, Any]:
    """Their model, and their criterion."""
    transformer = code.transformer.Transformer(
        d_model=WIDTH,
        num_queries=QUERIES,
        num_encoder_layers=2,
        num_decoder_layers=LAYERS,
        dim_feedforward=64,
        dropout=0.0,
        activation="prelu",
        return_intermediate_dec=True,
    )
    model = code.DABDETR.DABDETR(Backbone(code), transformer, CLASSES, QUERIES, aux_loss=True)
    code.DABDETR.box_ops.generalized_box_iou = generalized_box_iou
    code.matcher.generalized_box_iou = generalized_box_iou
    matcher = code.matcher.HungarianMatcher(cost_class=2, cost_bbox=5, cost_giou=2, focal_alpha=0.25)
    enliven(model)
    return model, code.DABDETR.SetCriterion(CLASSES, matcher, {}, 0.25, ["labels", "boxes"])


def run_authors(
    code: SimpleNamespace, model: Any, criterion: Any, features: Tensor
) -> tuple[Any, Any, dict[str, Tensor]]:
    """Outputs, what the authors store of the denoising queries, and the losses under detkit's names."""
    objects = SetTargets.of(TARGETS, SIZES.flip(1).repeat(1, 2).float())
    labels, boxes = (torch.split(column, objects.counts) for column in (objects.labels, objects.boxes))
    targets = [{"labels": a, "boxes": b} for a, b in zip(labels, boxes, strict=True)]
    samples = code.misc.NestedTensor(features, padding_mask(SIZES, CANVAS, CELLS))
    outputs, denoised = model(samples, dn_args=(targets, 5, 0.0, 0.0, 0))
    losses = criterion(outputs, targets, denoised)
    weights = {"class": ("ce", 1), "l1": ("bbox", 5), "giou": ("giou", 2)}
    named = {}
    for group, prefix in (("detr", "loss"), ("denoising", "tgt_loss")):
        for own, (name, weight) in weights.items():
            named[f"{group}_{own}"] = weight * losses[f"{prefix}_{name}"]
            auxiliary = [losses[f"{prefix}_{name}_{layer}"] for layer in range(LAYERS - 1)]
            named[f"{group}_aux_{own}"] = weight * torch.stack(auxiliary).sum()
    return outputs, denoised, named


def test_training_equals_the_authors(compare: Ledger) -> None:
    torch.manual_seed(0)
    features = torch.randn(3, CHANNELS, *CELLS)
    transformer = DABTransformerConfig(width=WIDTH, encoder_layers=2, decoder_layers=LAYERS, feedforward=64)
    denoising = DNDenoisingConfig(label_noise=0.0, box_noise=0.0)
    config = DABDETRHeadConfig(transformer=transformer, num_queries=QUERIES, denoising=denoising)
    head = DABDETRHead(config, CHANNELS, CLASSES)
    with authors_code() as code:
        model, criterion = build_authors(code)
        head.load_state_dict(own_keys(model.state_dict()))
        expected, denoised, expected_losses = run_authors(code, model, criterion, features)
        torch.stack(list(expected_losses.values())).sum().backward()
    outputs = head([features], SIZES, CANVAS, TARGETS)
    losses = head.criterion(outputs, TARGETS)
    torch.stack(list(losses.values())).sum().backward()

    enter = partial(compare, "DN-DETR's head, small", "the authors' code")
    layers = [*expected["aux_outputs"], expected]
    enter("logits, all layers", [(a, b["pred_logits"]) for a, b in zip(outputs.logits, layers, strict=True)])
    enter("boxes (parts), all layers", [(a, b["pred_boxes"]) for a, b in zip(outputs.boxes, layers, strict=True)])
    assert outputs.denoising is not None
    logits, boxes = denoised["output_known_lbs_bboxes"]
    enter("denoising queries", [(outputs.denoising.logits, logits), (outputs.denoising.boxes, boxes)])
    assert losses.keys() == expected_losses.keys()
    enter("losses, relative", [(losses[name] / expected_losses[name], torch.ones(())) for name in losses])
    gradients = own_keys({key: p.grad for key, p in model.named_parameters()})
    actual = {key: p.grad for key, p in head.named_parameters()}
    assert actual.keys() == gradients.keys()
    largest = max(gradient.norm().item() for gradient in gradients.values())
    scales = {key: max(1e-3 * largest, gradient.norm().item()) for key, gradient in gradients.items()}
    enter("gradients", [(actual[key] / scale, gradients[key] / scale) for key, scale in scales.items()])


def own_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {re.sub(r"^head\.", "", key): tensor for key, tensor in convert_keys(state).items()}

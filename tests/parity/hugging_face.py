"""What the comparisons with Hugging Face's detectors of one level share: small models with lively weights, a padded
batch, the losses by Hugging Face's own functions, and gradients."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.nn.backbones.resnet import ResNetConfig
from detkit.structures import Batch, Categories
from tests.parity.batches import padded_batch
from tests.parity.test_detr import corners_to_parts

SIZES = [(224, 310), (270, 200), (160, 160)]
OBJECTS = [0, 1, 7]
CATEGORIES = Categories.of_names([f"class {i}" for i in range(11)])
BACKBONE = ResNetConfig(name="resnet18", strides=(32,))
WIDTH, HEADS, ENCODER_LAYERS, DECODER_LAYERS, FEEDFORWARD, QUERIES = 64, 4, 2, 3, 128, 20
_PARTS = {"attention_heads": HEADS, "ffn_dim": FEEDFORWARD}
TRANSFORMER = {
    "width": WIDTH,
    "heads": HEADS,
    "encoder_layers": ENCODER_LAYERS,
    "decoder_layers": DECODER_LAYERS,
    "feedforward": FEEDFORWARD,
    "dropout": 0.0,
}


def small(**fields: Any) -> dict[str, Any]:
    """The fields of a configuration of transformers that has the sizes above."""
    transformers = pytest.importorskip("transformers")
    sides = {f"{side}_{part}": size for side in ("encoder", "decoder") for part, size in _PARTS.items()}
    backbone = transformers.ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], out_features=["stage4"]
    )
    return {
        "backbone_config": backbone,
        "use_timm_backbone": False,
        "num_labels": len(CATEGORIES),
        "num_queries": QUERIES,
        "encoder_layers": ENCODER_LAYERS,
        "decoder_layers": DECODER_LAYERS,
        "dropout": 0.0,
        **sides,
        **fields,
    }


def make_batch() -> Batch:
    return padded_batch(SIZES, OBJECTS, len(CATEGORIES), corner=90, side=60)


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Norms as after a training, few objects among many queries, and queries that differ."""
    for name, module in model.named_modules():
        if "BatchNorm" in type(module).__name__:
            module.weight.uniform_(0.5, 1.0)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            module.bias.normal_(std=0.1)
            if re.search(r"\.[qk]_\w+_proj$", name):
                module.weight.mul_(5)  # attention that tells cells apart
            elif re.search(r"encoder\.layers.*o(?:ut)?_proj$", name):
                module.weight.mul_(0.3)  # and cells that stay different
            elif "class" in name:
                module.bias.sub_(3)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_()
        elif isinstance(module, nn.PReLU):
            module.weight.uniform_(0.1, 0.4)


def pixel_mask() -> Tensor:
    """int64 `[B, H, W]`: 1 on the picture, 0 on the padding."""
    mask = torch.zeros(len(SIZES), max(h for h, _ in SIZES), max(w for _, w in SIZES), dtype=torch.int64)
    for image, (height, width) in zip(mask, SIZES, strict=True):
        image[:height, :width] = 1
    return mask


def losses_of(layers: Sequence[dict[str, Tensor]], batch: Batch, class_weight: float) -> dict[str, Tensor]:
    """The losses of layers with "logits" and "pred_boxes", under detkit's names and with the authors' weights."""
    from transformers.loss import loss_deformable_detr as loss

    matcher = loss.DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    criterion = loss.DeformableDetrImageLoss(
        matcher=matcher, num_classes=len(CATEGORIES), focal_alpha=0.25, losses=["labels", "boxes"]
    )
    labels = [
        {"class_labels": target.objects.labels, "boxes": corners_to_parts(target.objects.boxes, size)}
        for target, size in zip(batch.targets or (), SIZES, strict=True)
    ]
    losses = criterion({**layers[-1], "auxiliary_outputs": layers[:-1]}, labels)
    named = {}
    for own, (name, weight) in {
        "class": ("loss_ce", class_weight),
        "l1": ("loss_bbox", 5),
        "giou": ("loss_giou", 2),
    }.items():
        named[f"detr_{own}"] = weight * losses[name]
        named[f"detr_aux_{own}"] = weight * sum(losses[f"{name}_{layer}"] for layer in range(len(layers) - 1))
    return named


def gradients(
    detector: nn.Module, reference: nn.Module, convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Of all that detkit trains, each divided by the norm of the reference's, but not by less than a thousandth of the
    largest norm: the biases of keys, and the first self-attention of queries without content, have none but rounding.
    """
    expected = convert({key: p.grad for key, p in reference.named_parameters() if p.grad is not None})
    actual = {key: p.grad for key, p in detector.named_parameters() if p.grad is not None}
    assert actual.keys() <= expected.keys(), sorted(actual.keys() - expected.keys())
    norms = {key: expected[key].norm().item() for key in actual}
    scales = {key: max(1e-3 * max(norms.values()), norm) for key, norm in norms.items()}
    return [(actual[key] / scale, expected[key] / scale) for key, scale in scales.items()]

"""Deformable DETR in its three forms against Hugging Face's `DeformableDetrForObjectDetection`.

Its loss weights the class by 1, where the authors' weights it by 2, and has no term for the proposals of the encoder,
where the authors' has one in which every object is of the first class: both are put right here.

Bilinear interpolation has a kink at every middle of a cell, at which rounding moves gradients (`KINKS`) either way.
"""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.deformable_detr import DeformableDETRConfig, build_deformable_detr
from detkit.nn.deformable import DeformableTransformerConfig
from detkit.nn.heads.deformable_detr import DeformableDETRHeadConfig
from detkit.structures import Batch, Categories
from detkit.weights.deformable_detr import convert_keys
from tests.parity.batches import padded_batch
from tests.parity.conftest import KINKS, AsRun, Ledger
from tests.parity.test_detr import corners_to_parts

SIZES = [(160, 224), (190, 130), (128, 128)]
OBJECTS = [0, 1, 7]
CLASSES = 91
QUERIES = 40  # that the encoder proposes; of 300 some score so alike that rounding decides their order
CATEGORIES = Categories.of_names([f"class {i}" for i in range(CLASSES)])
HUGGING_FACE = "transformers DeformableDetrForObjectDetection"
FORMS = {"plain": (False, False), "refined": (True, False), "two-stage": (True, True)}


def make_batch() -> Batch:
    return padded_batch(SIZES, OBJECTS, CLASSES, corner=70, side=50)


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Norms as after a training, and heads and attention that tell queries apart."""
    for name, module in model.named_modules():
        if "BatchNorm" in type(module).__name__:
            last = name.endswith(("bn3", "layer.2.normalization"))
            module.weight.uniform_(0.2, 0.5) if last else module.weight.uniform_(0.8, 1.2)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if "sampling_offsets" not in name:
                module.bias.normal_(std=0.1)
            if re.search(r"bbox_embed\.6\.layers\.2", name):  # the proposals stay near their cells
                module.weight.mul_(0.2)
            elif re.search(r"bbox_embed\.\d\.layers\.2", name):
                module.weight.mul_(0.5)
            elif "class_embed" in name:
                module.bias.sub_(4.6)  # few objects among many queries
        elif isinstance(module, nn.Embedding):
            module.weight.normal_()


def reference_of(refine: bool, two_stage: bool) -> Any:
    """With heads of its own for each layer: with `with_box_refine` alone the fresh model ties the class heads."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False,
        num_labels=CLASSES,
        dropout=0.0,
        with_box_refine=refine,
        two_stage=two_stage,
        two_stage_num_proposals=QUERIES if two_stage else 300,
        class_cost=2,
    )
    reference = transformers.DeformableDetrForObjectDetection(config)
    if refine and not two_stage:
        for number in range(6):
            reference.class_embed[number] = nn.Linear(256, CLASSES)
    enliven(reference)
    reference.requires_grad_(True)  # it freezes the whole of its ResNet
    return reference


@pytest.fixture(
    scope="module",
    params=[*(pytest.param(form, marks=pytest.mark.slow) for form in ("plain", "refined")), "two-stage"],
)
def pair(request: pytest.FixtureRequest, as_run: AsRun) -> tuple[str, Any, Any]:
    torch.manual_seed(0)
    refine, two_stage = FORMS[request.param]
    reference = reference_of(refine, two_stage)
    transformer = DeformableTransformerConfig(dropout=0.0)
    queries = QUERIES if two_stage else 300
    head = DeformableDETRHeadConfig(transformer=transformer, num_queries=queries, refine=refine, two_stage=two_stage)
    detr = build_deformable_detr(DeformableDETRConfig(head=head), CATEGORIES)
    detr.load_state_dict(convert_keys(reference.state_dict(), refine=refine))
    return f"Deformable DETR R50, {request.param}", as_run(detr), reference


def run_hugging_face(reference: Any, images: Tensor, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
    """The outputs, and the losses with the authors' weights."""
    mask = torch.zeros(len(SIZES), *images.shape[2:], dtype=torch.int64)
    for image, (height, width) in zip(mask, SIZES, strict=True):
        image[:height, :width] = 1
    labels = [
        {"class_labels": target.objects.labels, "boxes": corners_to_parts(target.objects.boxes, size)}
        for target, size in zip(batch.targets or (), SIZES, strict=True)
    ]
    reference.config.auxiliary_loss = True
    outputs = reference(pixel_values=images, pixel_mask=mask, labels=labels)
    weights = {"loss_ce": 2, "loss_bbox": 5, "loss_giou": 2}
    losses = {
        name: value * weights["_".join(name.split("_")[:2])]
        for name, value in outputs.loss_dict.items()
        if "cardinality" not in name
    }
    if reference.config.two_stage:
        from transformers.loss import loss_deformable_detr as loss

        criterion = loss.DeformableDetrImageLoss(
            matcher=loss.DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2),
            num_classes=CLASSES,
            focal_alpha=0.25,
            losses=["labels", "boxes"],
        )
        proposals = {
            "logits": outputs.enc_outputs_class,
            "pred_boxes": outputs.enc_outputs_coord_logits.sigmoid(),
        }
        objects = [label | {"class_labels": torch.zeros_like(label["class_labels"])} for label in labels]
        for name, value in criterion(proposals, objects).items():
            losses[f"{name}_enc"] = weights[name] * value
    return outputs, losses


def test_outputs_losses_and_gradients(pair: tuple[str, Any, Any], compare: Ledger) -> None:
    name, detr, reference = pair
    batch = make_batch()
    assert batch.targets is not None
    detr.train(), reference.train()
    images = detr.input(batch.images, batch.sizes())
    outputs = detr.network(images, batch.sizes())
    losses = detr.criterion(outputs, batch.targets)
    expected, expected_losses = run_hugging_face(reference, images, batch)
    assert outputs.boxes[-1].std(dim=1).min() > 0.01, "the queries should predict different things"

    enter = partial(compare, name, HUGGING_FACE)
    layers = [*expected.auxiliary_outputs, {"logits": expected.logits, "pred_boxes": expected.pred_boxes}]
    enter("logits, six layers", [(a, b["logits"]) for a, b in zip(outputs.logits, layers, strict=True)])
    enter("boxes (parts), six layers", [(a, b["pred_boxes"]) for a, b in zip(outputs.boxes, layers, strict=True)])
    if outputs.proposals:
        enter("proposals: logits", [(outputs.proposals.logits[0], expected.enc_outputs_class)])
        enter("proposals: boxes (parts)", [(outputs.proposals.boxes[0], expected.enc_outputs_coord_logits.sigmoid())])
    pairs = []
    for own, other in {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}.items():
        auxiliary = torch.stack([expected_losses[f"{other}_{layer}"] for layer in range(5)]).sum()
        pairs += [(losses[f"detr_{own}"], expected_losses[other]), (losses[f"detr_aux_{own}"], auxiliary)]
        if outputs.proposals:
            pairs.append((losses[f"proposal_{own}"], expected_losses[f"{other}_enc"]))
    enter("losses, relative", [(a / b, torch.ones(())) for a, b in pairs])

    detr.zero_grad(), reference.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    torch.stack(list(expected_losses.values())).sum().backward()
    enter("gradients, all that are trained", gradients(detr, reference), limit=KINKS)


def gradients(detr: Any, reference: Any) -> list[tuple[Tensor, Tensor]]:
    """Each divided by the norm of the reference's."""
    names = reference.named_parameters(remove_duplicate=False)
    expected = {key: p.grad for key, p in names if p.grad is not None}
    expected = convert_keys(expected, refine=detr.head.config.refine)
    actual = {key: p.grad for key, p in detr.named_parameters() if p.grad is not None}
    assert actual.keys() <= expected.keys()
    scales = {key: max(1e-3, expected[key].norm().item()) for key in actual}
    return [(actual[key] / scale, expected[key] / scale) for key, scale in scales.items()]


@pytest.mark.parametrize(("form", "count"), [("plain", 40_069_665), ("refined", 40_849_660), ("two-stage", 41_181_529)])
def test_counts_are_the_authors(form: str, count: int) -> None:
    """Those of the frozen first stages included, as they count; the affine parts of frozen norms are buffers."""
    refine, two_stage = FORMS[form]
    with torch.device("meta"):
        config = DeformableDETRConfig(head=DeformableDETRHeadConfig(refine=refine, two_stage=two_stage))
        detr = build_deformable_detr(config, CATEGORIES)
    assert sum(p.numel() for p in detr.parameters()) == count

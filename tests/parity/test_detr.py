"""DETR against Hugging Face's `DetrForObjectDetection`, and against facebookresearch's layers in `tests/reference`."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.detr import DETR, DETRConfig, build_detr
from detkit.nn.heads.detr import DETRHeadConfig
from detkit.nn.transformer import TransformerConfig
from detkit.structures import Batch
from detkit.weights.detr import CONFIGS, convert_keys
from tests.parity.batches import padded_batch
from tests.parity.conftest import Ledger
from tests.reference import detr as reference

SIZES = [(224, 310), (270, 200), (160, 160)]
OBJECTS = [0, 1, 12]
CLASSES = [f"class {i}" for i in range(91)]
HUGGING_FACE = "transformers DetrForObjectDetection"


def make_batch() -> Batch:
    return padded_batch(SIZES, OBJECTS, len(CLASSES), corner=100, side=50)


def without_dropout(config: DETRConfig) -> DETRConfig:
    head = DETRHeadConfig(transformer=TransformerConfig(dropout=0.0))
    return config.model_copy(update={"head": head})


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Frozen batch norms with random statistics that keep activations of order one, and attention so sharp that cells
    and queries stay different: fresh ones all see the mean."""
    for name, module in model.named_modules():
        if "BatchNorm" in type(module).__name__:
            last = name.endswith(("bn3", "layer.2.normalization"))
            module.weight.uniform_(0.2, 0.5) if last else module.weight.uniform_(0.8, 1.2)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            module.bias.normal_(std=0.1)
            if name.endswith(("q_proj", "k_proj")):
                module.weight.mul_(4)
            elif re.search(r"encoder\.layers.*o(ut)?_proj|bbox.*2$", name):
                module.weight.mul_(0.3 if "encoder" in name else 4)
        elif isinstance(module, nn.MultiheadAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            module.in_proj_weight[:512] *= 4
        elif isinstance(module, nn.Embedding):
            module.weight.normal_()


@pytest.fixture(scope="module")
def pair() -> tuple[DETR, Any]:
    """(ours, Hugging Face's) with the same lively random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(out_features=["stage4"]),
        use_timm_backbone=False,
        num_labels=len(CLASSES),
        dropout=0.0,
    )
    theirs = transformers.DetrForObjectDetection(config)
    enliven(theirs)
    theirs.requires_grad_(True)  # it freezes the whole of its own ResNet, where the paper freezes the first stages
    ours = build_detr(without_dropout(CONFIGS["detr_resnet50"]), CLASSES)
    ours.load_state_dict(convert_keys(theirs.state_dict()))
    return ours, theirs


def run_hugging_face(model: Any, ours: DETR, batch: Batch) -> tuple[list[dict[str, Tensor]], Tensor, dict[str, Tensor]]:
    """(logits and boxes of the six layers, total loss, separate losses), each by its own functions.

    With `auxiliary_loss` its decoder hands the normalised states on to the next layer, unlike the published one; so its
    layers are listened to and its criterion is given their outputs.
    """
    from transformers.loss import loss_for_object_detection as loss

    images = ours.input(batch)
    mask = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.int64)
    for of_image, (height, width) in zip(mask, SIZES, strict=True):
        of_image[:height, :width] = 1
    heard: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda *call: heard.append(call[2][0] if isinstance(call[2], tuple) else call[2]))
        for layer in model.model.decoder.layers
    ]
    last = model(pixel_values=images, pixel_mask=mask)
    for handle in handles:
        handle.remove()
    layers = [
        {"logits": model.class_labels_classifier(said), "pred_boxes": model.bbox_predictor(said).sigmoid()}
        for said in map(model.model.decoder.layernorm, heard)
    ]
    assert torch.equal(layers[-1]["logits"], last.logits)
    labels = [
        {"class_labels": target.labels, "boxes": corners_to_parts(target.boxes, size)}
        for target, size in zip(batch.targets or (), SIZES, strict=True)
    ]
    criterion = loss.ImageLoss(
        matcher=loss.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2),
        num_classes=len(CLASSES),
        eos_coef=0.1,
        losses=["labels", "boxes"],
    )
    separate = criterion({**layers[-1], "auxiliary_outputs": layers[:-1]}, labels)
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    weighted = {name: value * weights["_".join(name.split("_")[:2])] for name, value in separate.items()}
    return layers, torch.stack(list(weighted.values())).sum(), weighted


def corners_to_parts(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    x1, y1, x2, y2 = (boxes / torch.tensor([size[1], size[0]] * 2)).unbind(dim=1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1)


def test_outputs_losses_and_gradients_equal_hugging_faces(pair: tuple[DETR, Any], compare: Ledger) -> None:
    ours, theirs = pair
    batch = make_batch()
    ours.train(), theirs.train()
    outputs = ours(batch)
    losses = ours.criterion(outputs, batch.targets)
    layers, total, separate = run_hugging_face(theirs, ours, batch)
    assert outputs.boxes[-1].std(dim=1).min() > 0.01, "the queries should say different things"

    enter = partial(compare, "DETR R50", HUGGING_FACE)
    enter("logits, six layers", [(a, b["logits"]) for a, b in zip(outputs.logits, layers, strict=True)])
    enter("boxes (parts), six layers", [(a, b["pred_boxes"]) for a, b in zip(outputs.boxes, layers, strict=True)])
    names = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}
    pairs = [(losses[f"detr_{mine}"], separate[yours]) for mine, yours in names.items()]
    for mine, yours in names.items():
        pairs.append((losses[f"detr_aux_{mine}"], torch.stack([separate[f"{yours}_{i}"] for i in range(5)]).sum()))
    enter("losses, last and auxiliary", pairs)
    enter("total loss, relative", [(sum(losses.values()) / total, torch.ones(()))])

    ours.zero_grad(), theirs.zero_grad()
    sum(losses.values()).backward()
    total.backward()
    gradients = convert_keys({key: p.grad for key, p in theirs.named_parameters()})
    wanted = {key: grad for key, grad in gradients.items() if not key.startswith(("backbone.conv1", "backbone.layer1"))}
    found = {key: p.grad for key, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    scale = {key: max(1.0, wanted[key].abs().max().item()) for key in wanted}
    enter("gradients, all that are trained", [(found[key] / scale[key], wanted[key] / scale[key]) for key in wanted])


def test_detections_equal_hugging_faces(pair: tuple[DETR, Any], compare: Ledger) -> None:
    from transformers import DetrImageProcessor

    ours, theirs = pair
    batch = make_batch()
    ours.eval(), theirs.eval()
    with torch.no_grad():
        found = ours.postprocess(ours(batch), batch.infos)
        mask = torch.zeros(3, 270, 310, dtype=torch.int64)
        for of_image, (height, width) in zip(mask, SIZES, strict=True):
            of_image[:height, :width] = 1
        raw = theirs(pixel_values=ours.input(batch), pixel_mask=mask)
    processed = DetrImageProcessor().post_process_object_detection(raw, threshold=0.0, target_sizes=SIZES)
    pairs_of_boxes, pairs_of_scores = [], []
    for detections, expected, (height, width) in zip(found, processed, SIZES, strict=True):
        order = expected["scores"].argsort(descending=True, stable=True)
        boxes = expected["boxes"][order].clamp(min=0).minimum(torch.tensor([width, height] * 2))  # it clips nothing
        assert len(detections) == 100
        assert torch.equal(detections.labels, expected["labels"][order])
        pairs_of_boxes.append((detections.boxes, boxes))
        pairs_of_scores.append((detections.scores, expected["scores"][order]))
    compare("DETR R50", HUGGING_FACE, "detections: boxes (px)", pairs_of_boxes)
    compare("DETR R50", HUGGING_FACE, "detections: scores", pairs_of_scores)


@pytest.mark.parametrize("name", ["detr_resnet50", "detr_resnet50_dc5", "detr_resnet101"])
def test_outputs_equal_the_papers_layers(name: str, compare: Ledger) -> None:
    torch.manual_seed(0)
    theirs = reference.DETR("resnet101" if "101" in name else "resnet50", dilation="dc5" in name).eval()
    enliven(theirs)
    ours = build_detr(CONFIGS[name], CLASSES).eval()
    ours.load_state_dict(convert_keys(theirs.state_dict()))
    batch = make_batch()
    padding = torch.ones(3, 270, 310, dtype=torch.bool)
    for of_image, (height, width) in zip(padding, SIZES, strict=True):
        of_image[:height, :width] = False
    with torch.no_grad():
        outputs = ours(batch)
        logits, boxes = theirs(ours.input(batch), padding)
    assert boxes[-1].std(dim=1).min() > 0.01, "the queries should say different things"
    title = {"detr_resnet50": "DETR R50", "detr_resnet50_dc5": "DETR R50-DC5", "detr_resnet101": "DETR R101"}[name]
    compare(title, "the paper's layers on nn.MultiheadAttention", "logits, six layers", [(outputs.logits, logits)])
    compare(title, "the paper's layers on nn.MultiheadAttention", "boxes (parts), six layers", [(outputs.boxes, boxes)])

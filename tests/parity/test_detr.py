"""DETR against Hugging Face's `DetrForObjectDetection`, and against facebookresearch's layers in `tests/reference`."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.detr import DETRConfig, build_detr
from detkit.detectors.single_shot import SingleShotDetector
from detkit.nn.heads.detr import DETRHeadConfig
from detkit.nn.heads.set_head import DETROutputs
from detkit.nn.transformer import TransformerConfig
from detkit.structures import Batch, Categories
from detkit.weights.detr import CONFIGS, convert_keys
from tests.parity.batches import in_order_of, padded_batch
from tests.parity.conftest import KINKS, TOOLS, AsRun, Ledger
from tests.reference.detr import DETR as PaperDETR

SIZES = [(224, 310), (270, 200), (160, 160)]
OBJECTS = [0, 1, 12]
CATEGORIES = Categories.of_names([f"class {i}" for i in range(91)])
HUGGING_FACE = "transformers DetrForObjectDetection"
DETR = SingleShotDetector[DETROutputs]


def make_batch() -> Batch:
    return padded_batch(SIZES, OBJECTS, len(CATEGORIES), corner=100, side=50)


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
def pair(as_run: AsRun) -> tuple[DETR, Any]:
    """detkit's and Hugging Face's DETR with the same lively random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(out_features=["stage4"]),
        use_timm_backbone=False,
        num_labels=len(CATEGORIES),
        dropout=0.0,
    )
    reference = transformers.DetrForObjectDetection(config)
    enliven(reference)
    reference.requires_grad_(True)  # it freezes the whole of its own ResNet, where the paper freezes the first stages
    detr = build_detr(without_dropout(CONFIGS["detr_resnet50"]), CATEGORIES)
    detr.load_state_dict(convert_keys(reference.state_dict()))
    return as_run(detr), reference


def pixel_mask() -> Tensor:
    """int64 `[B, H, W]` as Hugging Face's models take it: 1 on the picture, 0 on the padding."""
    mask = torch.zeros(len(SIZES), max(h for h, _ in SIZES), max(w for _, w in SIZES), dtype=torch.int64)
    for image, (height, width) in zip(mask, SIZES, strict=True):
        image[:height, :width] = 1
    return mask


def run_hugging_face(reference: Any, images: Tensor, batch: Batch) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Logits and boxes of the six layers, and the weighted losses, each by Hugging Face's own functions.

    With `auxiliary_loss` its decoder hands the normalised states on to the next layer, unlike the published one. So the
    hidden states are read from its layers by hooks, and its criterion is given the predictions from them.
    """
    from transformers.loss import loss_for_object_detection as loss

    hidden_states: list[Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda *call: hidden_states.append(call[2][0] if isinstance(call[2], tuple) else call[2])
        )
        for layer in reference.model.decoder.layers
    ]
    last = reference(pixel_values=images, pixel_mask=pixel_mask())
    for handle in handles:
        handle.remove()
    layers = [
        {"logits": reference.class_labels_classifier(hidden), "pred_boxes": reference.bbox_predictor(hidden).sigmoid()}
        for hidden in map(reference.model.decoder.layernorm, hidden_states)
    ]
    assert torch.equal(layers[-1]["logits"], last.logits)
    labels = [
        {"class_labels": target.objects.labels, "boxes": corners_to_parts(target.objects.boxes, size)}
        for target, size in zip(batch.targets or (), SIZES, strict=True)
    ]
    criterion = loss.ImageLoss(
        matcher=loss.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2),
        num_classes=len(CATEGORIES),
        eos_coef=0.1,
        losses=["labels", "boxes"],
    )
    losses = criterion({**layers[-1], "auxiliary_outputs": layers[:-1]}, labels)
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    return layers, {name: value * weights["_".join(name.split("_")[:2])] for name, value in losses.items()}


def corners_to_parts(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    x1, y1, x2, y2 = (boxes / torch.tensor([size[1], size[0]] * 2)).unbind(dim=1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1)


def test_outputs_losses_and_gradients_equal_hugging_faces(pair: tuple[DETR, Any], compare: Ledger, way: str) -> None:
    detr, reference = pair
    batch = make_batch()
    assert batch.targets is not None
    detr.train(), reference.train()
    outputs = detr(batch)
    losses = detr.criterion(outputs, batch.targets)
    layers, expected = run_hugging_face(reference, detr.input(batch.images, batch.sizes()), batch)
    assert outputs.boxes[-1].std(dim=1).min() > 0.01, "the queries should predict different things"

    enter = partial(compare, "DETR R50", HUGGING_FACE)
    enter("logits, six layers", [(a, b["logits"]) for a, b in zip(outputs.logits, layers, strict=True)])
    enter("boxes (parts), six layers", [(a, b["pred_boxes"]) for a, b in zip(outputs.boxes, layers, strict=True)])
    pairs_of_losses = []
    for name, expected_name in {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}.items():
        auxiliary = torch.stack([expected[f"{expected_name}_{layer}"] for layer in range(5)]).sum()
        pairs_of_losses += [(losses[f"detr_{name}"], expected[expected_name]), (losses[f"detr_aux_{name}"], auxiliary)]
    enter("losses, last and auxiliary", pairs_of_losses)
    total, expected_total = (torch.stack(list(values.values())).sum() for values in (losses, expected))
    enter("total loss, relative", [(total / expected_total, torch.ones(()))])

    detr.zero_grad(), reference.zero_grad()
    total.backward()
    expected_total.backward()
    gradients = convert_keys({key: p.grad for key, p in reference.named_parameters()})
    frozen = ("backbone.conv1", "backbone.layer1")
    expected_gradients = {key: gradient for key, gradient in gradients.items() if not key.startswith(frozen)}
    actual_gradients = {key: p.grad for key, p in detr.named_parameters() if p.grad is not None}
    assert actual_gradients.keys() == expected_gradients.keys()
    scales = {key: max(1.0, gradient.norm().item()) for key, gradient in expected_gradients.items()}
    pairs = [(actual_gradients[key] / scale, expected_gradients[key] / scale) for key, scale in scales.items()]
    enter("gradients, all that are trained", pairs, limit=KINKS if way == TOOLS else 1e-4)


def test_detections_equal_hugging_faces(pair: tuple[DETR, Any], compare: Ledger) -> None:
    from transformers import DetrImageProcessor

    detr, reference = pair
    batch = make_batch()
    detr.eval(), reference.eval()
    with torch.no_grad():
        detections_of_images = detr.postprocess(detr(batch), batch.infos)
        raw = reference(pixel_values=detr.input(batch.images, batch.sizes()), pixel_mask=pixel_mask())
    processed = DetrImageProcessor().post_process_object_detection(raw, threshold=0.0, target_sizes=SIZES)
    pairs_of_boxes, pairs_of_scores = [], []
    for detections, expected, (height, width) in zip(detections_of_images, processed, SIZES, strict=True):
        order = expected["scores"].argsort(descending=True, stable=True)
        boxes = expected["boxes"][order].clamp(min=0).minimum(torch.tensor([width, height] * 2))  # it clips nothing
        assert len(detections) == 100
        own_boxes, own_scores = in_order_of(detections, boxes, expected["labels"][order])
        size = torch.tensor([width, height] * 2)
        pairs_of_boxes.append((own_boxes / size, boxes / size))
        pairs_of_scores.append((own_scores, expected["scores"][order]))
    compare("DETR R50", HUGGING_FACE, "detections: boxes (parts)", pairs_of_boxes)
    compare("DETR R50", HUGGING_FACE, "detections: scores", pairs_of_scores)


@pytest.mark.parametrize("name", ["detr_resnet50", "detr_resnet50_dc5", "detr_resnet101"])
def test_outputs_equal_the_papers_layers(name: str, compare: Ledger, as_run: AsRun) -> None:
    torch.manual_seed(0)
    reference = PaperDETR("resnet101" if "101" in name else "resnet50", dilation="dc5" in name).eval()
    enliven(reference)
    detr = build_detr(CONFIGS[name], CATEGORIES).eval()
    detr.load_state_dict(convert_keys(reference.state_dict()))
    as_run(detr)
    batch = make_batch()
    with torch.no_grad():
        outputs = detr(batch)
        logits, boxes = reference(detr.input(batch.images, batch.sizes()), pixel_mask() == 0)
    assert boxes[-1].std(dim=1).min() > 0.01, "the queries should predict different things"
    title = {"detr_resnet50": "DETR R50", "detr_resnet50_dc5": "DETR R50-DC5", "detr_resnet101": "DETR R101"}[name]
    compare(title, "the paper's layers on nn.MultiheadAttention", "logits, six layers", [(outputs.logits, logits)])
    compare(title, "the paper's layers on nn.MultiheadAttention", "boxes (parts), six layers", [(outputs.boxes, boxes)])

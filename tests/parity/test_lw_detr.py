"""LW-DETR and RF-DETR against Hugging Face's `LwDetrForObjectDetection` and `RfDetrForObjectDetection`: small ones,
from the same random weights.

Their loss is the authors'. They never choose cells that propose nothing, which the authors' code and detkit may; maps
of fewer than 50 cells a side have no such cells. The projector of RF-DETR has the authors' epsilon here, of which
transformers has ten times.

Bilinear interpolation has a kink at every middle of a cell, at which rounding moves gradients (`KINKS`) either way.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.lw_detr import build_lw_detr
from detkit.nn.heads.lw_detr import LWDETROutputs
from detkit.structures import Batch, Categories
from detkit.weights.lw_detr import convert_keys, hf_config
from tests.parity.batches import padded_batch
from tests.parity.conftest import KINKS, AsRun, Ledger
from tests.parity.test_detr import corners_to_parts
from tests.parity.test_rt_detr import with_running_statistics

SIZE = (192, 192)
OBJECTS = [0, 1, 7]
CLASSES = 5
LAYERS = 3
GROUPS = 3
QUERIES = 20
CATEGORIES = Categories.of_names([f"class {i}" for i in range(CLASSES)])
HEAD = {
    "num_labels": CLASSES,
    "num_queries": QUERIES,
    "group_detr": GROUPS,
    "d_model": 64,
    "decoder_layers": LAYERS,
    "decoder_ffn_dim": 128,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 8,
    "decoder_n_points": 2,
    "dropout": 0.0,
}
Pair = tuple[str, Any, Any]


def lw_detr(width: int, **fields: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig

    sizes = {"hidden_size": width, "num_hidden_layers": 4, "num_attention_heads": 4, "window_block_indices": [0, 3]}
    config = transformers.LwDetrConfig(
        backbone_config=LwDetrViTConfig(**sizes, out_indices=[2, 3, 4]), **{**HEAD, **fields}
    )
    return transformers.LwDetrForObjectDetection(config)


def rf_detr(image_size: int) -> Any:
    """image_size  of which the table of positions is; 192 or, to be interpolated, another one"""
    transformers = pytest.importorskip("transformers")
    from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

    sizes = {"hidden_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4, "num_windows": 2, "patch_size": 16}
    backbone = RfDetrDinov2Config(**sizes, image_size=image_size, out_indices=[1, 3, 5])
    config = transformers.RfDetrConfig(backbone_config=backbone, layer_norm_eps=1e-6, **HEAD)
    return transformers.RfDetrForObjectDetection(config)


FORMS: dict[str, Callable[[], Any]] = {
    "LW-DETR, one level": lambda: lw_detr(48, projector_scale_factors=[1.0]),
    "LW-DETR, two levels": lambda: lw_detr(48, projector_scale_factors=[2.0, 0.5], decoder_n_points=4),
    "LW-DETR, wide levels": lambda: lw_detr(516, projector_scale_factors=[2.0, 1.0, 0.5]),
    "RF-DETR": lambda: rf_detr(192),
    "RF-DETR, other positions": lambda: rf_detr(256),
}
SLOW = ("LW-DETR, wide levels", "RF-DETR, other positions")


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Norms as after a training, and heads and attention that tell queries apart."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.uniform_(0.8, 1.2)
            module.bias.normal_(std=0.1)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None and "sampling_offsets" not in name:
                module.bias.normal_(std=0.1)
            if "bbox_embed" in name and name.endswith("layers.2"):  # boxes stay near their cells
                module.weight.mul_(0.3)
            elif "class_embed" in name:
                module.bias.sub_(4.6)  # few objects among many queries
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.2)
    for name, parameter in model.named_parameters():
        if "gamma" in name or "lambda1" in name:
            parameter.uniform_(0.2, 1.0)
        elif "position_embeddings" in name or "cls_token" in name:
            parameter.normal_(std=0.5)


@pytest.fixture(
    scope="module", params=[pytest.param(form, marks=[pytest.mark.slow] * (form in SLOW)) for form in FORMS]
)
def pair(request: pytest.FixtureRequest, as_run: AsRun) -> Pair:
    torch.manual_seed(0)
    reference = FORMS[request.param]()
    enliven(reference)
    detector = build_lw_detr(hf_config(reference.config.to_dict()), CATEGORIES)
    detector.load_state_dict(convert_keys(reference.state_dict()))
    return request.param, as_run(detector), reference


def make_batch() -> Batch:
    return padded_batch([SIZE] * len(OBJECTS), OBJECTS, CLASSES, corner=110, side=60)


def run_hugging_face(reference: Any, images: Tensor, batch: Batch) -> tuple[Any, dict[str, Tensor], Tensor, Tensor]:
    """The outputs, the weighted losses, and logits and boxes of all layers `[L, B, G Q, ...]`."""
    labels = [
        {"class_labels": target.objects.labels, "boxes": corners_to_parts(target.objects.boxes, SIZE)}
        for target in batch.targets or ()
    ]
    outputs = reference(images, labels=labels)
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    losses = {
        name: value * weights["_".join(name.split("_")[:2])]
        for name, value in outputs.loss_dict.items()
        if "cardinality" not in name
    }
    torch.testing.assert_close(torch.stack(list(losses.values())).sum(), outputs.loss)
    return outputs, losses, *all_layers(reference, outputs)


def all_layers(reference: Any, outputs: Any) -> tuple[Tensor, Tensor]:
    """Logits and boxes of every decoder layer, `[L, B, Q, ...]`."""
    hidden, boxes = outputs.intermediate_hidden_states, outputs.init_reference_points
    move = reference.bbox_embed(hidden)
    centers, sides = move[..., :2] * boxes[..., 2:] + boxes[..., :2], move[..., 2:].exp() * boxes[..., 2:]
    return reference.class_embed(hidden), torch.cat([centers, sides], dim=-1)


def by_group(proposals: Tensor) -> Tensor:
    """`[G, B, Q, ...]` -> `[B, G Q, ...]`"""
    return proposals.transpose(0, 1).flatten(1, 2)


def test_outputs_losses_and_gradients(pair: Pair, compare: Ledger) -> None:
    name, detector, reference = pair
    batch = make_batch()
    with_running_statistics(detector)
    with_running_statistics(reference)
    outputs: LWDETROutputs = detector(batch)
    losses = detector.criterion(outputs, batch.targets)
    images = detector.input(batch.images, batch.sizes())
    expected, expected_losses, logits, boxes = run_hugging_face(reference, images, batch)
    assert outputs.boxes[-1].std(dim=1).min() > 0.01, "the queries should predict different things"

    enter = partial(compare, name, f"transformers {type(reference).__name__}")
    enter("logits, all layers and groups", [(outputs.logits, logits)])
    enter("boxes (parts), all layers and groups", [(outputs.boxes, boxes)])
    proposals = outputs.proposals
    enter("proposals: logits", [(by_group(proposals.logits), expected.enc_outputs_class)])
    enter("proposals: boxes (parts)", [(by_group(proposals.boxes), expected.enc_outputs_coord_logits)])
    pairs = loss_pairs(losses, expected_losses)
    enter("losses, relative", [(a / b, torch.ones(())) for a, b in pairs])

    detector.zero_grad(), reference.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    torch.stack(list(expected_losses.values())).sum().backward()
    enter("gradients, all that are trained", gradients(detector, reference), limit=KINKS)


def loss_pairs(losses: dict[str, Tensor], expected: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Every loss with its counterpart."""
    pairs = []
    for own, other in {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}.items():
        pairs += [
            (losses[f"detr_{own}"], expected[other]),
            (losses[f"detr_aux_{own}"], torch.stack([expected[f"{other}_{i}"] for i in range(LAYERS - 1)]).sum()),
            (losses[f"proposal_{own}"], expected[f"{other}_enc"]),
        ]
    assert len(pairs) == len(losses)
    return pairs


def gradients(detector: Any, reference: Any) -> list[tuple[Tensor, Tensor]]:
    """Each divided by the norm of the reference's."""
    expected = convert_keys({key: p.grad for key, p in reference.named_parameters() if p.grad is not None})
    actual = {key: p.grad for key, p in detector.named_parameters() if p.grad is not None}
    assert actual.keys() == expected.keys() == dict(detector.named_parameters()).keys()
    scales = {key: max(1e-3, expected[key].norm().item()) for key in actual}
    return [(actual[key] / scale, expected[key] / scale) for key, scale in scales.items()]


@torch.no_grad()
def test_evaluation(pair: Pair, compare: Ledger) -> None:
    name, detector, reference = pair
    batch = make_batch()
    detector.eval(), reference.eval()
    images = detector.input(batch.images, batch.sizes())
    outputs = detector.network(images, batch.sizes())
    expected = reference(images)
    logits, boxes = all_layers(reference, expected)
    assert logits.shape[2] == QUERIES
    enter = partial(compare, name, f"transformers {type(reference).__name__}")
    enter("evaluation: logits, all layers", [(outputs.logits, logits), (outputs.logits[-1], expected.logits)])
    enter("evaluation: boxes (parts), all layers", [(outputs.boxes, boxes), (outputs.boxes[-1], expected.pred_boxes)])

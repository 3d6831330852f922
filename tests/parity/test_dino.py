"""DINO beside its authors' own code, from the same random weights and with the same denoising queries.

See `tests/parity/dino_authors.py` for the clone that it needs. Their code differs from detkit's only where a batch has
no object at all: then they have no denoising queries, and detkit has some that are trained as "no object".

Bilinear interpolation has a kink at every middle of a cell, at which rounding moves gradients (`KINKS`) either way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.detectors.dino import DINO, DINOConfig, build_dino
from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.denoising import NoisedQueries, noised_queries
from detkit.nn.heads import denoised
from detkit.nn.heads.dino import DINOHeadConfig
from detkit.structures import Batch, Categories
from detkit.weights.dino import convert_keys
from tests.parity.batches import in_order_of, padded_batch
from tests.parity.conftest import KINKS, AsRun, Ledger
from tests.parity.dino_authors import authors_code, build_authors_dino
from tests.parity.test_deformable_detr import enliven
from tests.parity.test_detr import corners_to_parts

SIZES = [(160, 224), (190, 130), (128, 128)]
OBJECTS = [0, 1, 7]
CLASSES = 13
CATEGORIES = Categories.of_names([f"class {i}" for i in range(CLASSES)])
QUERIES, ENCODER_LAYERS, DECODER_LAYERS = 40, 2, 3
TRANSFORMER = {"encoder_layers": ENCODER_LAYERS, "decoder_layers": DECODER_LAYERS, "feedforward": 512}
HEAD = DINOHeadConfig.model_validate({"transformer": TRANSFORMER, "num_queries": QUERIES})
NAME, REFERENCE = "DINO R50, small transformer", "the authors' code"
SEED = 3
Pair = tuple[DINO, Any, Any]


@pytest.fixture(scope="module")
def code() -> Iterator[SimpleNamespace]:
    with authors_code() as code:
        yield code


@pytest.fixture(scope="module")
def pair(code: SimpleNamespace, as_run: AsRun) -> Pair:
    torch.manual_seed(0)
    reference, criterion = build_authors_dino(
        code,
        num_classes=CLASSES,
        dn_labelbook_size=CLASSES,
        num_queries=QUERIES,
        enc_layers=ENCODER_LAYERS,
        dec_layers=DECODER_LAYERS,
        dim_feedforward=512,
    )
    enliven(reference)
    with torch.no_grad():  # the proposals stay near their cells
        reference.transformer.enc_out_bbox_embed.layers[2].weight.mul_(0.2)
    dino = build_dino(DINOConfig(head=HEAD), CATEGORIES)
    dino.load_state_dict(convert_keys(reference.state_dict()))
    return as_run(dino), reference, criterion


def make_batch() -> Batch:
    return padded_batch(SIZES, OBJECTS, CLASSES, corner=70, side=50)


def targets_of(batch: Batch) -> list[dict[str, Tensor]]:
    return [
        {"labels": target.objects.labels, "boxes": corners_to_parts(target.objects.boxes, size)}
        for target, size in zip(batch.targets or (), SIZES, strict=True)
    ]


def objects_of(batch: Batch) -> SetTargets:
    assert batch.targets is not None
    return SetTargets.of(batch.targets, batch.sizes().flip(1).repeat(1, 2).float())


def authors_queries(code: SimpleNamespace, label_noise: float, box_noise: float) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Labels `[B, D]`, -1 in empty slots; boxes `[B, D, 4]`; the mask, True where attention is forbidden; the rest."""
    torch.manual_seed(SEED)
    labels, anchors, mask, meta = code.dn_components.prepare_for_cdn(
        dn_args=(targets_of(make_batch()), 100, label_noise, box_noise),
        training=True,
        num_queries=QUERIES,
        num_classes=CLASSES,
        hidden_dim=1,
        label_enc=lambda labels: labels[:, None].float() + 1,
    )
    return labels[..., 0].long() - 1, anchors.sigmoid(), mask, meta


def with_queries_of(authors: tuple[Tensor, Tensor, Tensor, Any], own: NoisedQueries) -> NoisedQueries:
    labels, boxes, _, _ = authors
    return replace(own, labels=labels.where(labels >= 0, CLASSES), boxes=boxes)


def test_slots_of_the_denoising_queries(code: SimpleNamespace, compare: Ledger) -> None:
    """Without noise nothing is random; the first image has no object, the last one seven."""
    labels, boxes, mask, meta = authors_queries(code, 0.0, 1e-9)
    assert HEAD.denoising is not None
    config = HEAD.denoising.model_copy(update={"label_noise": 0.0, "box_noise": 0.0})
    own = noised_queries(config, objects_of(make_batch()), CLASSES)
    assert own.groups == meta["num_dn_group"] == 14
    assert own.labels.where(own.labels < CLASSES, -1).equal(labels)
    assert own.mask_with(QUERIES).equal(~mask)
    compare("DINO", REFERENCE, "boxes of denoising queries", [(own.boxes, boxes)])


def run_authors(pair: Pair, images: Tensor, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
    """The outputs, and the weighted losses by name."""
    _, reference, criterion = pair
    from util.misc import NestedTensor

    mask = torch.ones(len(SIZES), *images.shape[2:], dtype=torch.bool)
    for image, (height, width) in zip(mask, SIZES, strict=True):
        image[:height, :width] = False
    torch.manual_seed(SEED)
    outputs = reference(NestedTensor(images, mask), targets_of(batch))
    losses = criterion(outputs, targets_of(batch)) if reference.training else {}
    return outputs, {name: losses[name] * weight for name, weight in criterion.weight_dict.items() if name in losses}


def enter_layers(enter: Any, what: str, own: Any, authors: Any) -> None:
    layers = [*authors["aux_outputs"], authors]
    enter(f"{what}: logits", [(a, b["pred_logits"]) for a, b in zip(own.logits, layers, strict=True)])
    enter(f"{what}: boxes (parts)", [(a, b["pred_boxes"]) for a, b in zip(own.boxes, layers, strict=True)])


def test_training(pair: Pair, code: SimpleNamespace, compare: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    dino, reference, _ = pair
    batch = make_batch()
    assert batch.targets is not None
    dino.train(), reference.train()
    authors = authors_queries(code, 0.5, 0.4)
    monkeypatch.setattr(denoised, "noised_queries", lambda *given: with_queries_of(authors, noised_queries(*given)))
    outputs = dino(batch)
    losses = dino.criterion(outputs, batch.targets)
    expected, expected_losses = run_authors(pair, dino.input(batch.images, batch.sizes()), batch)
    assert outputs.boxes[-1].std(dim=1).min() > 0.01, "the queries should predict different things"

    enter = partial(compare, NAME, REFERENCE)
    enter_layers(enter, "queries, all layers", outputs.decoder, expected)
    enter_layers(enter, "denoising, all layers", outputs.denoising, expected["dn_meta"]["output_known_lbs_bboxes"])
    proposals = expected["interm_outputs"]
    enter("proposals: logits", [(outputs.proposals.logits[0], proposals["pred_logits"])])
    enter("proposals: boxes (parts)", [(outputs.proposals.boxes[0], proposals["pred_boxes"])])
    pairs = []
    for own, other in {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}.items():
        for group, mark in (("detr", ""), ("denoising", "_dn")):
            earlier = [expected_losses.pop(f"{other}{mark}_{layer}") for layer in range(DECODER_LAYERS - 1)]
            pairs.append((losses.pop(f"{group}_{own}"), expected_losses.pop(f"{other}{mark}")))
            pairs.append((losses.pop(f"{group}_aux_{own}"), torch.stack(earlier).sum()))
        pairs.append((losses.pop(f"proposal_{own}"), expected_losses.pop(f"{other}_interm")))
    assert not losses
    assert not expected_losses
    enter("losses of all groups, relative", [(a / b, torch.ones(())) for a, b in pairs])

    dino.zero_grad(), reference.zero_grad()
    torch.stack([own for own, _ in pairs]).sum().backward()
    torch.stack([authors for _, authors in pairs]).sum().backward()
    enter("gradients, all that are trained", gradients(dino, reference), limit=KINKS)


def gradients(dino: DINO, reference: Any) -> list[tuple[Tensor, Tensor]]:
    """Each divided by the norm of the reference's."""
    names = reference.named_parameters(remove_duplicate=False)
    expected = convert_keys({key: p.grad for key, p in names if p.grad is not None})
    actual = {key: p.grad for key, p in dino.named_parameters() if p.grad is not None}
    assert actual.keys() == expected.keys()
    scales = {key: max(1e-3, expected[key].norm().item()) for key in actual}
    return [(actual[key] / scale, expected[key] / scale) for key, scale in scales.items()]


@torch.no_grad()
def test_evaluation(pair: Pair, code: SimpleNamespace, compare: Ledger) -> None:
    dino, reference, _ = pair
    batch = make_batch()
    dino.eval(), reference.eval()
    outputs = dino(batch)
    expected, _ = run_authors(pair, dino.input(batch.images, batch.sizes()), batch)
    enter = partial(compare, NAME, REFERENCE)
    enter_layers(enter, "evaluation, all layers", outputs.decoder, expected)
    found = code.dino.PostProcess(num_select=300)(expected, batch.sizes())
    pairs = []
    for detections, public, (height, width) in zip(dino.postprocess(outputs, batch.infos), found, SIZES, strict=True):
        boxes = public["boxes"].clamp(min=0).minimum(torch.tensor([width, height] * 2))
        own_boxes, own_scores = in_order_of(detections, boxes, public["labels"])
        pairs += [(own_boxes / 224, boxes / 224), (own_scores, public["scores"])]
    enter("detections", pairs)

"""D-FINE and DEIM beside their authors' own code, narrowed: outputs, every loss and gradients, from the same random
weights and with the same noised queries. See d_fine_authors.py for what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.d_fine import DFINEConfig, build_d_fine
from detkit.nn.denoising import NoisedQueries
from detkit.structures import Target
from detkit.weights.d_fine import convert_keys
from tests.parity.conftest import KINKS, AsRun, Ledger
from tests.parity.d_fine_authors import Authors, authors_code
from tests.parity.hugging_face import gradients
from tests.parity.test_d_fine import DFINE_FIELDS, LAYERS, enliven
from tests.parity.test_detr import corners_to_parts
from tests.parity.test_rt_detr import CATEGORIES, CLASSES, SIZE, make_batch, with_running_statistics

MATCHING = {"cost_class": 2, "cost_bbox": 5, "cost_giou": 2}
WEIGHTS = {"loss_vfl": 1, "loss_mal": 1, "loss_bbox": 5, "loss_giou": 2, "loss_fgl": 0.15, "loss_ddf": 1.5}
Pair = tuple[str, Any, Any, Any]


class Reference(nn.Module):
    """The parts as the authors join them, under the names that their checkpoints have."""

    def __init__(self, authors: Authors, deim: bool) -> None:
        super().__init__()
        self.authors = authors
        self.backbone = authors.backbone.HGNetv2(
            name="B0", use_lab=True, return_idx=[1, 2, 3], freeze_at=-1, freeze_norm=False, pretrained=False
        )
        self.encoder = authors.encoder.HybridEncoder(
            in_channels=[256, 512, 1024], hidden_dim=64, nhead=4, dim_feedforward=128, expansion=0.5, depth_mult=0.34
        )
        acts = {"activation": "silu", "mlp_act": "silu"} if deim else {}
        self.decoder = authors.decoder.DFINETransformer(
            num_classes=CLASSES,
            hidden_dim=64,
            num_queries=40,
            feat_channels=[64, 64, 64],
            num_points=[3, 6, 3],
            nhead=4,
            num_layers=LAYERS,
            dim_feedforward=128,
            **acts,
        )

    def run(self, images: Tensor, labels: Sequence[dict[str, Tensor]], noised: NoisedQueries) -> dict[str, Any]:
        """The outputs in training, given the noised queries."""
        page = self.authors.decoder
        make = page.get_contrastive_denoising_training_group

        def given_queries(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
            """What it makes, mask and pairs included, but the labels and boxes, which are random."""
            _, _, mask, meta = make(*arguments, **options)
            return self.decoder.denoising_class_embed(noised.labels), page.inverse_sigmoid(noised.boxes), mask, meta

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(page, "get_contrastive_denoising_training_group", given_queries)
            outputs: dict[str, Any] = self.decoder(self.encoder(self.backbone(images)), labels)
        return outputs


@pytest.fixture(scope="module", params=["D-FINE", "DEIM"])
def pair(request: pytest.FixtureRequest, as_run: AsRun) -> Iterator[Pair]:
    pytest.importorskip("timm")
    deim = request.param == "DEIM"
    with authors_code("DETKIT_DEIM" if deim else "DETKIT_DFINE") as authors:
        torch.manual_seed(1)  # with 0 rounding decides about the gradient of an activation near zero
        reference = Reference(authors, deim)
        enliven(reference)
        own_class = authors.criterion.DEIMCriterion if deim else authors.criterion.DFINECriterion
        criterion = own_class(
            authors.matcher.HungarianMatcher(MATCHING, use_focal_loss=True),
            WEIGHTS,
            ["mal" if deim else "vfl", "boxes", "local"],
            alpha=0.75,
            gamma=1.5 if deim else 2.0,
            num_classes=CLASSES,
        )
        detector = build_d_fine(config_of(deim), CATEGORIES)
        detector.load_state_dict(convert_keys(reference.state_dict()))
        yield request.param, as_run(detector), reference, criterion


def config_of(deim: bool) -> DFINEConfig:
    transformer: dict[str, Any] = {"width": 64, "heads": 4, "decoder_layers": LAYERS, "feedforward": 128}
    head: dict[str, Any] = {"transformer": transformer, "num_queries": 40}
    if deim:
        transformer["act"], head["matchability"] = "swish", {}
    return DFINEConfig.model_validate(
        {
            "backbone": {"name": "timm", "model": "hgnetv2_b0"},
            "neck": {"width": 64, "heads": 4, "feedforward": 128, "expansion": 0.5, "depth": 0.34},
            "head": head,
            "input": {"resize": {"name": "stretch", "size": SIZE[0]}},
        }
    )


def labels_of(targets: Sequence[Target]) -> list[dict[str, Tensor]]:
    return [
        {"labels": target.objects.labels, "boxes": corners_to_parts(target.objects.boxes, SIZE)} for target in targets
    ]


def test_outputs_losses_and_gradients(pair: Pair, compare: Ledger) -> None:
    name, detector, reference, criterion = pair
    batch = make_batch()
    torch.manual_seed(1)
    outputs = with_running_statistics(detector)(batch)
    losses = detector.criterion(outputs, batch.targets)
    images, labels = detector.input(batch.images, batch.sizes()), labels_of(batch.targets or ())
    expected = with_running_statistics(reference).run(images, labels, outputs.noised)
    expected_losses = criterion(expected, labels)

    enter = partial(compare, name, "the authors' code")
    for what, part, all_layers, first in (
        ("", outputs.decoder, [*expected["aux_outputs"], expected], expected["pre_outputs"]),
        ("denoising: ", outputs.denoising, expected["dn_outputs"], expected["dn_pre_outputs"]),
    ):
        keys = ("pred_logits", "pred_boxes", "pred_corners")
        layers = [torch.stack([layer[key] for layer in all_layers]) for key in keys]
        firsts = [first["pred_logits"][None], first["pred_boxes"][None]]
        for field, other in zip(DFINE_FIELDS, [*layers, *firsts], strict=True):
            enter(what + field, [(getattr(part, field), other)])
    proposals = expected["enc_aux_outputs"][0]
    enter("proposals: logits", [(outputs.proposals.logits[0], proposals["pred_logits"])])
    enter("proposals: boxes (parts)", [(outputs.proposals.boxes[0], proposals["pred_boxes"])])
    check_losses(losses, expected_losses, enter)

    detector.zero_grad(), reference.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    torch.stack(list(expected_losses.values())).sum().backward()
    enter("gradients, all that are trained", gradients(detector, reference, convert_keys), limit=KINKS)


def check_losses(losses: Mapping[str, Tensor], expected: Mapping[str, Tensor], enter: Any) -> None:
    """Each of detkit's with the sum of those of the authors' that it stands for, relative where above 1."""
    rest, pairs = dict(expected), []

    def take(*names: str) -> Tensor:
        return torch.stack([rest.pop(name) for name in names]).sum()

    short = {
        "class": "loss_mal" if "loss_mal" in expected else "loss_vfl",
        "l1": "loss_bbox",
        "giou": "loss_giou",
        "localization": "loss_fgl",
    }
    before = range(LAYERS - 1)
    for own, other in short.items():
        pairs += [
            (losses[f"detr_{own}"], take(other)),
            (losses[f"detr_aux_{own}"], take(*(f"{other}_aux_{layer}" for layer in before))),
            (losses[f"denoising_{own}"], take(f"{other}_dn_{LAYERS - 1}")),
            (losses[f"denoising_aux_{own}"], take(*(f"{other}_dn_{layer}" for layer in before))),
        ]
        if own != "localization":
            pairs += [
                (losses[f"detr_first_{own}"], take(f"{other}_pre")),
                (losses[f"proposal_{own}"], take(f"{other}_enc_0")),
                (losses[f"denoising_first_{own}"], take(f"{other}_dn_pre")),
            ]
    assert rest.pop(f"loss_ddf_dn_{LAYERS - 1}", torch.zeros(())) == 0, "the last layer is its own teacher"
    pairs += [
        (losses[f"{own}_distillation"], take(*(f"loss_ddf_{other}_{layer}" for layer in before)))
        for own, other in (("detr", "aux"), ("denoising", "dn"))
    ]
    assert not rest, f"losses of the authors that detkit does not have: {sorted(rest)}"
    assert len(pairs) == len(losses)
    assert min(other.item() for _, other in pairs) > 1e-3, "a loss is hardly tested"
    sizes = [max(1.0, other.item()) for _, other in pairs]
    enter("losses", [(a / size, b / size) for (a, b), size in zip(pairs, sizes, strict=True)])

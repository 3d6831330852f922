"""D-FINE against Hugging Face's `DFineForObjectDetection`, narrowed, from the same random weights and with the same
noised queries.

Its loss is not the authors': boxes answer in each layer for that layer's own objects, where those of the authors answer
for the objects of all layers together, and the predictions before the first distribution have none. So gradients are
compared by detkit's losses of both outputs; test_d_fine_authors.py compares losses.

Bilinear interpolation has a kink at every middle of a cell, at which rounding moves gradients (`KINKS`) either way.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.d_fine import build_d_fine
from detkit.nn.denoising import NoisedQueries
from detkit.nn.heads.d_fine import DFINEOutputs
from detkit.nn.heads.denoised import DenoisedOutputs
from detkit.nn.heads.set_head import DETROutputs
from detkit.weights.d_fine import convert_keys, hf_config
from tests.parity.conftest import KINKS, AsRun, Ledger
from tests.parity.hugging_face import gradients
from tests.parity.test_detr import corners_to_parts
from tests.parity.test_rt_detr import CATEGORIES, CLASSES, SIZE, make_batch, with_running_statistics

LAYERS = 3
FORMS = {  # fields of the configuration of transformers
    "D-FINE, narrow B0": {"encoder_hidden_dim": 64, "depth_mult": 0.34, "hidden_expansion": 0.5},
    "D-FINE, wider neck, scale 8": {"encoder_hidden_dim": 96, "reg_scale": 8.0},
}
SEEDS = {"D-FINE, narrow B0": 4}  # 0 has an activation so near zero that rounding decides whether it has a gradient
REFERENCE = "transformers DFineForObjectDetection"
Pair = tuple[str, Any, Any]


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Norms as after a training, convolutions that let pictures through, and heads, gates and attention that tell
    queries apart."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif "BatchNorm" in type(module).__name__:
            module.weight.uniform_(0.5, 1.0)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif "Affine" in type(module).__name__:
            module.scale.uniform_(0.8, 1.2)
            module.bias.normal_(std=0.1)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if "sampling_offsets" not in name:
                module.bias.normal_(std=0.1)
            if "bbox_embed" in name or "dec_bbox_head" in name:
                module.weight.mul_(1.5)  # distributions that are not flat
            elif name.endswith("layers.2"):  # boxes stay near their cells
                module.weight.mul_(0.3)
            elif "class_embed" in name or "score_head" in name:
                module.bias.sub_(4.6)  # few objects among many queries
        elif isinstance(module, nn.Embedding):
            module.weight.normal_()
            module.weight[module.padding_idx] = 0


def reference_of(fields: dict[str, Any]) -> Any:
    transformers = pytest.importorskip("transformers")
    outputs = [64, 256, 512, 1024]
    config = transformers.DFineConfig(
        backbone_config=transformers.HGNetV2Config(
            stem_channels=[3, 16, 16],
            stage_in_channels=[16, 64, 256, 512],
            stage_mid_channels=[16, 32, 64, 128],
            stage_out_channels=outputs,
            stage_num_blocks=[1, 1, 2, 1],
            stage_numb_of_layers=[3, 3, 3, 3],
            use_learnable_affine_block=True,
            hidden_sizes=outputs,
            out_indices=[2, 3, 4],
        ),
        freeze_backbone_batch_norms=False,
        encoder_in_channels=outputs[1:],
        num_labels=CLASSES,
        num_queries=40,
        d_model=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        decoder_layers=LAYERS,
        decoder_n_points=[3, 6, 3],
        decoder_in_channels=[fields["encoder_hidden_dim"]] * 3,
        **fields,
    )
    reference = transformers.DFineForObjectDetection(config)
    enliven(reference)
    return reference


@pytest.fixture(
    scope="module",
    params=[next(iter(FORMS)), *(pytest.param(form, marks=pytest.mark.slow) for form in list(FORMS)[1:])],
)
def pair(request: pytest.FixtureRequest, as_run: AsRun) -> Pair:
    pytest.importorskip("timm")
    torch.manual_seed(SEEDS.get(request.param, 0))
    reference = reference_of(FORMS[request.param])
    detector = build_d_fine(hf_config(reference.config.to_dict()), CATEGORIES)
    detector.load_state_dict(convert_keys(reference.state_dict()))
    return request.param, as_run(detector), reference


def run_hugging_face(reference: Any, images: Tensor, targets: Any, noised: NoisedQueries) -> DenoisedOutputs:
    """Its outputs, as if detkit had computed them, given the noised queries."""
    from transformers.models.d_fine import modeling_d_fine as page

    make = page.get_contrastive_denoising_training_group

    def given_queries(**arguments: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """What it makes, mask and pairs included, but the labels and boxes, which are random."""
        _, _, mask, meta = make(**arguments)
        return arguments["class_embed"](noised.labels), page.inverse_sigmoid(noised.boxes), mask, meta

    labels = [
        {"class_labels": target.objects.labels, "boxes": corners_to_parts(target.objects.boxes, SIZE)}
        for target in targets
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "get_contrastive_denoising_training_group", given_queries)
        outputs = reference.model(images, labels=labels)
    logits, boxes, edges = (
        part.transpose(0, 1)
        for part in (
            outputs.intermediate_logits,
            outputs.intermediate_reference_points,
            outputs.intermediate_predicted_corners,
        )
    )
    sides = torch.tensor([SIZE[::-1] * 2] * len(images)).float()
    everything = (logits[1:], boxes[1:], edges, logits[:1], boxes[:1])
    noise = noised.labels.shape[1]
    denoising, decoder = (
        DFINEOutputs(sides=sides, **dict(zip(DFINE_FIELDS, (part[:, :, where] for part in everything), strict=True)))
        for where in (slice(noise), slice(noise, None))
    )
    proposals = DETROutputs(outputs.enc_topk_logits[None], outputs.enc_topk_bboxes[None], sides)
    return DenoisedOutputs(decoder, proposals, denoising, noised)


DFINE_FIELDS = ("logits", "boxes", "edges", "first_logits", "first_boxes")


def test_outputs_and_gradients(pair: Pair, compare: Ledger) -> None:
    name, detector, reference = pair
    batch = make_batch()
    torch.manual_seed(1)
    outputs = with_running_statistics(detector)(batch)
    images = detector.input(batch.images, batch.sizes())
    expected = run_hugging_face(with_running_statistics(reference), images, batch.targets, outputs.noised)
    assert outputs.boxes[-1].std(dim=1).min() > 0.01, "the queries should predict different things"
    assert outputs.decoder.edges.std(dim=-1).mean() > 0.1, "the distributions should not be flat"

    enter = partial(compare, name, REFERENCE)
    for what, actual, other in (
        ("", outputs.decoder, expected.decoder),
        ("denoising: ", outputs.denoising, expected.denoising),
    ):
        for field in DFINE_FIELDS:
            enter(what + field, [(getattr(actual, field), getattr(other, field))])
    enter("proposals: logits", [(outputs.proposals.logits, expected.proposals.logits)])
    enter("proposals: boxes (parts)", [(outputs.proposals.boxes, expected.proposals.boxes)])

    detector.zero_grad(), reference.zero_grad()
    for each in (outputs, replace(expected, noised=outputs.noised)):
        torch.stack(list(detector.criterion(each, batch.targets).values())).sum().backward()
    enter("gradients, all that are trained", gradients(detector, reference, convert_keys), limit=KINKS)


@torch.no_grad()
def test_evaluation(pair: Pair, compare: Ledger) -> None:
    name, detector, reference = pair
    batch = make_batch()
    detector.eval(), reference.eval()
    images = detector.input(batch.images, batch.sizes())
    outputs, expected = detector.network(images, batch.sizes()), reference(images)
    enter = partial(compare, name, REFERENCE)
    enter("evaluation: logits", [(outputs.logits[-1], expected.logits)])
    enter("evaluation: boxes (parts)", [(outputs.boxes[-1], expected.pred_boxes)])

"""RT-DETR and RT-DETRv2 against Hugging Face's `RTDetrForObjectDetection` and `RTDetrV2ForObjectDetection`: with a
ResNet-18 and a ResNet-50 and a narrow transformer, from the same random weights and with the same noised queries.

Its decoder has the published values and not the published gradients: each layer's prediction starts from a box without
gradient, where the authors' starts from the same box with its gradient (look forward twice). This is put right here.

Bilinear interpolation has a kink at every middle of a cell, at which rounding moves gradients (`KINKS`) either way.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.rt_detr import build_rt_detr
from detkit.nn.denoising import NoisedQueries
from detkit.nn.heads.denoised import DenoisedOutputs
from detkit.structures import Batch, Categories
from detkit.weights.rt_detr import convert_keys, hf_config
from tests.parity.batches import padded_batch
from tests.parity.conftest import KINKS, AsRun, Ledger
from tests.parity.test_detr import corners_to_parts

SIZE = (160, 160)
OBJECTS = [0, 1, 7]
CLASSES = 5
CATEGORIES = Categories.of_names([f"class {i}" for i in range(CLASSES)])
LAYERS = 3
BASIC = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
BOTTLENECK = {"layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048]}
FORMS = {  # the ResNet, the class of transformers, fields of its configuration
    "RT-DETR R18": (BASIC, "RTDetr", {"hidden_expansion": 0.5}),
    "RT-DETR R50": (BOTTLENECK, "RTDetr", {"encoder_hidden_dim": 96}),
    "RT-DETRv2 R18": (BASIC, "RTDetrV2", {"hidden_expansion": 0.5, "decoder_n_points": 3}),
    "RT-DETRv2 R18, discrete": (BASIC, "RTDetrV2", {"hidden_expansion": 0.5, "decoder_method": "discrete"}),
}
Pair = tuple[str, Any, Any]


def make_batch() -> Batch:
    return padded_batch([SIZE] * len(OBJECTS), OBJECTS, CLASSES, corner=90, side=60)


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Norms as after a training, and heads and attention that tell queries apart."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif "BatchNorm" in type(module).__name__:
            last = name.endswith(("layer.1.normalization", "layer.2.normalization"))
            module.weight.uniform_(0.2, 0.5) if last else module.weight.uniform_(0.8, 1.2)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if "sampling_offsets" not in name:
                module.bias.normal_(std=0.1)
            if name.endswith("layers.2"):  # boxes stay near their cells
                module.weight.mul_(0.3)
            elif "class_embed" in name or "score_head" in name:
                module.bias.sub_(4.6)  # few objects among many queries
        elif isinstance(module, nn.Embedding):
            module.weight.normal_()[-1] = 0  # of empty slots; the fresh model fills it


def reference_of(backbone: dict[str, Any], version: str, fields: dict[str, Any]) -> Any:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{version}Config")(
        backbone_config=transformers.RTDetrResNetConfig(**backbone, out_features=["stage2", "stage3", "stage4"]),
        encoder_in_channels=backbone["hidden_sizes"][1:],
        num_labels=CLASSES,
        num_queries=40,
        **{
            "d_model": 64,
            "encoder_hidden_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "decoder_layers": LAYERS,
            **fields,
        },
    )
    config.decoder_in_channels = [config.encoder_hidden_dim] * 3
    reference = getattr(transformers, f"{version}ForObjectDetection")(config)
    enliven(reference)
    return reference


@pytest.fixture(
    scope="module",
    params=["RT-DETR R18", *(pytest.param(form, marks=pytest.mark.slow) for form in list(FORMS)[1:])],
)
def pair(request: pytest.FixtureRequest, as_run: AsRun) -> Pair:
    torch.manual_seed(0)
    backbone, version, fields = FORMS[request.param]
    reference = reference_of(backbone, version, fields)
    detector = build_rt_detr(hf_config(reference.config.to_dict()), CATEGORIES)
    detector.load_state_dict(convert_keys(reference.state_dict()))
    reference.model.backbone.model.embedder.requires_grad_(False)  # as the authors freeze it
    return request.param, as_run(detector), reference


def with_running_statistics(model: Any) -> Any:
    """In training, without batch statistics, which would enlarge rounding where a level has few cells."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def run_hugging_face(
    reference: Any, images: Tensor, batch: Batch, noised: NoisedQueries
) -> tuple[Any, dict[str, Tensor], Tensor]:
    """The outputs, the losses and the boxes `[L, B, D + Q, 4]` of the decoder, given the noised queries."""
    from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss
    from transformers.models.rt_detr import modeling_rt_detr as v1
    from transformers.models.rt_detr_v2 import modeling_rt_detr_v2 as v2

    labels = [
        {"class_labels": target.objects.labels, "boxes": corners_to_parts(target.objects.boxes, SIZE)}
        for target in batch.targets or ()
    ]
    page = v2 if reference.config.model_type == "rt_detr_v2" else v1
    make = page.get_contrastive_denoising_training_group

    def given_queries(**arguments: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """What it makes, mask and pairs included, but the labels and boxes, which are random."""
        _, _, mask, meta = make(**arguments)
        return arguments["class_embed"](noised.labels), v1.inverse_sigmoid(noised.boxes), mask, meta

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "get_contrastive_denoising_training_group", given_queries)
        outputs = reference.model(images, labels=labels)
    hidden, boxes = outputs.intermediate_hidden_states, outputs.intermediate_reference_points
    embed = reference.model.decoder.bbox_embed
    forward_twice = [boxes[:, 0]]
    for layer in range(1, LAYERS):
        move = embed[layer](hidden[:, layer])
        forward_twice.append((move + v1.inverse_sigmoid(boxes[:, layer - 1])).sigmoid())
    boxes = torch.stack(forward_twice, dim=1)
    _, losses, _ = RTDetrForObjectDetectionLoss(
        outputs.intermediate_logits[:, -1],
        labels,
        images.device,
        boxes[:, -1],
        reference.config,
        outputs.intermediate_logits,
        boxes,
        outputs.enc_topk_logits,
        outputs.enc_topk_bboxes,
        outputs.denoising_meta_values,
    )
    return outputs, losses, boxes.transpose(0, 1)


def run(detector: Any, batch: Batch) -> tuple[DenoisedOutputs, dict[str, Tensor]]:
    torch.manual_seed(1)
    outputs = detector(batch)
    return outputs, detector.criterion(outputs, batch.targets)


def test_outputs_losses_and_gradients(pair: Pair, compare: Ledger) -> None:
    name, detector, reference = pair
    batch = make_batch()
    outputs, losses = run(with_running_statistics(detector), batch)
    assert outputs.denoising is not None
    assert outputs.noised is not None
    images = detector.input(batch.images, batch.sizes())
    with_running_statistics(reference)
    expected, expected_losses, boxes = run_hugging_face(reference, images, batch, outputs.noised)
    assert outputs.boxes[-1].std(dim=1).min() > 0.01, "the queries should predict different things"

    enter = partial(compare, name, f"transformers {type(reference).__name__}")
    noise = outputs.noised.labels.shape[1]
    logits = expected.intermediate_logits.transpose(0, 1)
    enter("logits, all layers", [(outputs.logits, logits[:, :, noise:])])
    enter("boxes (parts), all layers", [(outputs.boxes, boxes[:, :, noise:])])
    enter("denoising: logits, all layers", [(outputs.denoising.logits, logits[:, :, :noise])])
    enter("denoising: boxes (parts), all layers", [(outputs.denoising.boxes, boxes[:, :, :noise])])
    enter("proposals: logits", [(outputs.proposals.logits[0], expected.enc_topk_logits)])
    enter("proposals: boxes (parts)", [(outputs.proposals.boxes[0], expected.enc_topk_bboxes)])
    pairs = loss_pairs(losses, expected_losses)
    enter("losses, relative", [(a / b, torch.ones(())) for a, b in pairs])

    detector.zero_grad(), reference.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    torch.stack(list(expected_losses.values())).sum().backward()
    enter("gradients, all that are trained", gradients(detector, reference), limit=KINKS)


def loss_pairs(losses: dict[str, Tensor], expected: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Every loss with its counterpart; among the auxiliary ones of the reference, the proposals' are the last."""
    pairs = []
    for own, other in {"class": "loss_vfl", "l1": "loss_bbox", "giou": "loss_giou"}.items():
        pairs += [
            (losses[f"detr_{own}"], expected[other]),
            (losses[f"detr_aux_{own}"], sum_of(expected, f"{other}_aux", LAYERS - 1)),
            (losses[f"proposal_{own}"], expected[f"{other}_aux_{LAYERS - 1}"]),
            (losses[f"denoising_{own}"], expected[f"{other}_dn_{LAYERS - 1}"]),
            (losses[f"denoising_aux_{own}"], sum_of(expected, f"{other}_dn", LAYERS - 1)),
        ]
    assert len(pairs) == len(losses)
    return pairs


def sum_of(losses: dict[str, Tensor], name: str, count: int) -> Tensor:
    return torch.stack([losses[f"{name}_{layer}"] for layer in range(count)]).sum()


def gradients(detector: Any, reference: Any) -> list[tuple[Tensor, Tensor]]:
    """Each divided by the norm of the reference's."""
    expected = convert_keys({key: p.grad for key, p in reference.named_parameters() if p.grad is not None})
    actual = {key: p.grad for key, p in detector.named_parameters() if p.grad is not None}
    assert actual.keys() <= expected.keys()
    assert len(actual) > 100
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
    enter = partial(compare, name, f"transformers {type(reference).__name__}")
    enter("evaluation: logits", [(outputs.logits[-1], expected.logits)])
    enter("evaluation: boxes (parts)", [(outputs.boxes[-1], expected.pred_boxes)])

"""Conditional DETR against Hugging Face's `ConditionalDetrForObjectDetection`, of small size.

Its loss weights the class by 1, where the authors' weights it by 2. With `auxiliary_loss` its decoder hands the
normalised states on to the next layer, unlike the published one; so the states are read from its layers by hooks.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.detectors.detr import DETRConfig, build_detr
from detkit.nn.heads.conditional_detr import ConditionalDETRHeadConfig
from detkit.nn.transformer import TransformerConfig
from detkit.structures import Categories
from detkit.weights.conditional_detr import convert_keys, hf_config
from tests.parity import hugging_face as hf
from tests.parity.conftest import KINKS, TOOLS, AsRun, Ledger

HUGGING_FACE = "transformers ConditionalDetrForObjectDetection"


@pytest.fixture(scope="module")
def pair(as_run: AsRun) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.ConditionalDetrForObjectDetection(
        transformers.ConditionalDetrConfig(**hf.small(d_model=hf.WIDTH))
    )
    hf.enliven(reference)
    reference.requires_grad_(True)  # it freezes the whole of its ResNet
    head = ConditionalDETRHeadConfig(transformer=TransformerConfig(**hf.TRANSFORMER), num_queries=hf.QUERIES)
    detr = build_detr(DETRConfig(backbone=hf.BACKBONE, head=head), hf.CATEGORIES)
    detr.load_state_dict(convert_keys(reference.state_dict()))
    return as_run(detr), reference


def layers_of(reference: Any, images: Tensor) -> list[dict[str, Tensor]]:
    """Logits and boxes of all layers."""
    hidden_states: list[Tensor] = []
    decoder = reference.model.decoder
    handles = [layer.register_forward_hook(lambda *call: hidden_states.append(call[2])) for layer in decoder.layers]
    last = reference(pixel_values=images, pixel_mask=hf.pixel_mask())
    for handle in handles:
        handle.remove()
    references = decoder.ref_point_head(reference.model.query_position_embeddings.weight)
    moved = torch.nn.functional.pad(references, (0, 2))
    layers = [
        {
            "logits": reference.class_labels_classifier(hidden),
            "pred_boxes": (reference.bbox_predictor(hidden) + moved).sigmoid(),
        }
        for hidden in map(decoder.layernorm, hidden_states)
    ]
    assert torch.equal(layers[-1]["logits"], last.logits)
    torch.testing.assert_close(layers[-1]["pred_boxes"], last.pred_boxes)
    return layers


def test_outputs_losses_and_gradients(pair: tuple[Any, Any], compare: Ledger, way: str) -> None:
    detr, reference = pair
    batch = hf.make_batch()
    detr.train(), reference.train()
    images = detr.input(batch.images, batch.sizes())
    outputs = detr.network(images, batch.sizes())
    losses = detr.criterion(outputs, batch.targets)
    layers = layers_of(reference, images)
    expected = hf.losses_of(layers, batch, class_weight=2)
    assert outputs.boxes[-1].std(dim=1).min() > 0.003, "the queries should predict different things"

    enter = partial(compare, "Conditional DETR, small", HUGGING_FACE)
    enter("logits, all layers", [(a, b["logits"]) for a, b in zip(outputs.logits, layers, strict=True)])
    enter("boxes (parts), all layers", [(a, b["pred_boxes"]) for a, b in zip(outputs.boxes, layers, strict=True)])
    assert losses.keys() == expected.keys()
    enter("losses, relative", [(losses[name] / expected[name], torch.ones(())) for name in losses])
    torch.stack(list(losses.values())).sum().backward()
    torch.stack(list(expected.values())).sum().backward()
    limit = KINKS if way == TOOLS else 1e-4
    enter("gradients, all that are trained", hf.gradients(detr, reference, convert_keys), limit=limit)


@pytest.mark.parametrize(("classes", "count"), [(2, 43_395_528), (91, 43_418_401)])
def test_count_is_hugging_faces(classes: int, count: int) -> None:
    """Counted in `ConditionalDetrForObjectDetection` of transformers 5, whose frozen norms are buffers too."""
    with torch.device("meta"):
        config = DETRConfig(head=ConditionalDETRHeadConfig())
        detr = build_detr(config, Categories.of_names([str(number) for number in range(classes)]))
    assert sum(p.numel() for p in detr.parameters()) == count


def test_its_config_is_read() -> None:
    transformers = pytest.importorskip("transformers")
    assert hf_config(transformers.ConditionalDetrConfig().to_dict()).head == ConditionalDETRHeadConfig()

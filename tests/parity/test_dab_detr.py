"""DAB-DETR against Hugging Face's `DabDetrForObjectDetection`, of small size.

Its loss weights the class by 1, as the authors' does. Its configuration has dropout .1, the authors' command line 0.
Both keep the coordinates of anchors from 0 and 1, it by 1e-5 and the authors by 1e-3: here no box comes so near.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.detectors.detr import DETRConfig, build_detr
from detkit.nn.heads.dab_detr import EPS, DABDETRHeadConfig, DABTransformerConfig, DNDenoisingConfig
from detkit.structures import Batch, Categories
from detkit.weights.dab_detr import convert_keys, hf_config
from tests.parity import hugging_face as hf
from tests.parity.conftest import KINKS, TOOLS, AsRun, Ledger

HUGGING_FACE = "transformers DabDetrForObjectDetection"


@pytest.fixture(scope="module")
def pair(as_run: AsRun) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    reference = transformers.DabDetrForObjectDetection(
        transformers.DabDetrConfig(**hf.small(hidden_size=hf.WIDTH, auxiliary_loss=True))
    )
    hf.enliven(reference)
    reference.requires_grad_(True)  # it freezes the whole of its ResNet
    head = DABDETRHeadConfig(transformer=DABTransformerConfig(**hf.TRANSFORMER), num_queries=hf.QUERIES)
    detr = build_detr(DETRConfig(backbone=hf.BACKBONE, head=head), hf.CATEGORIES)
    detr.load_state_dict(convert_keys(reference.state_dict()))
    return as_run(detr), reference


def layers_of(reference: Any, images: Tensor, batch: Batch) -> list[dict[str, Tensor]]:
    """Logits and boxes of all layers."""
    labels = [{"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)} for _ in hf.SIZES]
    last = reference(pixel_values=images, pixel_mask=hf.pixel_mask(), labels=labels)
    return [*last.auxiliary_outputs, {"logits": last.logits, "pred_boxes": last.pred_boxes}]


def test_outputs_losses_and_gradients(pair: tuple[Any, Any], compare: Ledger, way: str) -> None:
    detr, reference = pair
    batch = hf.make_batch()
    detr.train(), reference.train()
    outputs = detr(batch)
    losses = detr.criterion(outputs, batch.targets)
    layers = layers_of(reference, detr.input(batch.images, batch.sizes()), batch)
    expected = hf.losses_of(layers, batch, class_weight=1)
    assert outputs.boxes[-1].std(dim=1).min() > 0.01, "the queries should predict different things"
    assert outputs.boxes.min() > EPS
    assert outputs.boxes.max() < 1 - EPS

    enter = partial(compare, "DAB-DETR, small", HUGGING_FACE)
    enter("logits, all layers", [(a, b["logits"]) for a, b in zip(outputs.logits, layers, strict=True)])
    enter("boxes (parts), all layers", [(a, b["pred_boxes"]) for a, b in zip(outputs.boxes, layers, strict=True)])
    assert losses.keys() == expected.keys()
    enter("losses, relative", [(losses[name] / expected[name], torch.ones(())) for name in losses])
    torch.stack(list(losses.values())).sum().backward()
    torch.stack(list(expected.values())).sum().backward()
    limit = KINKS if way == TOOLS else 1e-4
    enter("gradients, all that are trained", hf.gradients(detr, reference, convert_keys), limit=limit)


@pytest.mark.parametrize(("denoising", "count"), [(None, 43_671_517), (DNDenoisingConfig(), 43_694_977)])
def test_counts_are_the_authors(denoising: DNDenoisingConfig | None, count: int) -> None:
    """Of DAB-DETR and of DN-DETR, which adds 92 embeddings of labels."""
    with torch.device("meta"):
        config = DETRConfig(head=DABDETRHeadConfig(denoising=denoising))
        detr = build_detr(config, Categories.of_names([str(number) for number in range(91)]))
    assert sum(p.numel() for p in detr.parameters()) == count


def test_its_config_is_read() -> None:
    transformers = pytest.importorskip("transformers")
    assert hf_config(transformers.DabDetrConfig(dropout=0.0).to_dict()).head == DABDETRHeadConfig()

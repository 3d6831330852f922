"""DINO's published sizes, what its configuration refuses, and that targets matter in training alone."""

import pytest
import torch
from pydantic import ValidationError

from detkit.detectors.dino import DINO, DINOConfig, build_dino
from detkit.nn.backbones.resnet import ResNetConfig
from detkit.nn.heads.dino import DINOHeadConfig
from detkit.nn.input import InputConfig, LetterboxConfig
from detkit.nn.necks.projection import ProjectionConfig
from detkit.structures import Categories
from tests.detectors.batches import make_batch


@pytest.mark.parametrize(("strides", "count"), [((8, 16, 32), 46_893_182), ((4, 8, 16, 32), 47_255_806)])
def test_parameters_as_published(strides: tuple[int, ...], count: int) -> None:
    """IDEA-Research/DINO with the 91 ids of COCO as classes; the affine parts of frozen norms are buffers, as there."""
    with torch.device("meta"):
        config = DINOConfig(backbone=ResNetConfig(strides=strides))
        dino = build_dino(config, Categories.of_names([f"class {i}" for i in range(91)]))
    assert sum(parameter.numel() for parameter in dino.parameters()) == count


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"neck": ProjectionConfig(out_channels=128)},
            "neck.out_channels: expected head.transformer.width, 256, found",
        ),
        ({"input": InputConfig(resize=LetterboxConfig())}, "input.resize: padding is masked here"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DINOConfig(**fields)  # type: ignore[arg-type]


def make_dino() -> DINO:
    transformer = {"width": 32, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 32}
    head = DINOHeadConfig.model_validate({"transformer": transformer, "num_queries": 9, "denoising": {"queries": 6}})
    backbone = ResNetConfig(name="resnet18", weights=None, frozen_stages=0, strides=(16, 32))
    resize = {"name": "stretch", "size": 64}
    config = DINOConfig(
        backbone=backbone, neck=ProjectionConfig(out_channels=32), head=head, input=InputConfig(resize=resize)
    )
    return build_dino(config, Categories.of_names(["cat", "dog", "cow"]))


def test_denoising_queries_in_training_alone() -> None:
    """Two groups of as many slots as the first picture has objects, for these and as many negatives."""
    torch.manual_seed(0)
    dino = make_dino()
    batch = make_batch(dino, [3, 1])
    outputs = dino.train()(batch)
    assert outputs.denoising.boxes.shape == (2, 2, 12, 4)
    assert outputs.boxes.shape == (2, 2, 9, 4)
    evaluated = dino.eval()(batch)
    assert evaluated.denoising is None
    assert evaluated.noised is None
    without_targets = dino(make_batch(dino, [3, 1], targets=False))
    assert evaluated.boxes.equal(without_targets.boxes)
    assert evaluated.boxes.equal(dino.network(dino.input(batch.images, batch.sizes()), batch.sizes()).boxes)

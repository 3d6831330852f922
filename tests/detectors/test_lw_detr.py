"""LW-DETR and RF-DETR: parameters of the published forms, the export of both, and parts that do not fit."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from detkit.detectors.lw_detr import LWDETRConfig, build_lw_detr
from detkit.structures import Categories
from tests.detectors.batches import enliven, make_batch
from tests.detectors.export import check_export

COCO_IDS = Categories.of_names([f"class {i}" for i in range(91)])
TINY = {"name": "vit", "layers": 6, "taps": (2, 4, 6), "global_blocks": (2, 4, 6), "strides": (16, 16, 16)}
LARGE = {
    "neck": {"width": 384, "scales": (2, 0.5)},
    "head": {"transformer": {"width": 384, "heads": 12, "cross_heads": 24, "points": 4}},
}
MASK_TOKEN = 384  # parameters of DINOv2 for patches that are masked, which RF-DETR's code has and never uses
LAST_BLOCK = 1_775_232  # and those of the block after the last level of RF-DETR base


def rf_detr(size: int, layers: int, **backbone: Any) -> dict[str, Any]:
    return {
        "backbone": {"name": "dinov2", **backbone},
        "neck": {"norm": "ln"},
        "head": {"transformer": {"decoder_layers": layers}},
        "input": {"resize": {"name": "stretch", "size": size}},
    }


BASE = rf_detr(560, 3, positions=37, patch=14, windows=4, taps=(2, 5, 8, 11), strides=(14,) * 4)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        pytest.param({"backbone": TINY, "head": {"num_queries": 100}}, 12_052_002, id="LW-DETR tiny"),
        pytest.param({}, 14_557_378, id="LW-DETR small"),
        pytest.param({"backbone": {"name": "vit", "width": 384}}, 28_237_378, id="LW-DETR medium"),
        pytest.param({"backbone": {"name": "vit", "width": 384}, **LARGE}, 46_823_650, id="LW-DETR large"),
        pytest.param({"backbone": {"name": "vit", "width": 768}, **LARGE}, 118_033_378, id="LW-DETR xlarge"),
        pytest.param(rf_detr(384, 2, positions=24), 30_467_298 - MASK_TOKEN, id="RF-DETR nano"),
        pytest.param(rf_detr(512, 3), 32_111_170 - MASK_TOKEN, id="RF-DETR small"),
        pytest.param(rf_detr(576, 4, positions=36), 33_687_458 - MASK_TOKEN, id="RF-DETR medium"),
        pytest.param(rf_detr(704, 4, positions=44), 33_933_218 - MASK_TOKEN, id="RF-DETR large"),
        pytest.param(BASE, 32_174_530 - MASK_TOKEN - LAST_BLOCK, id="RF-DETR base"),
    ],
)
def test_counts_are_the_authors(fields: dict[str, Any], count: int) -> None:
    """With all groups of queries, and an output for each of COCO's ids."""
    with torch.device("meta"):
        detector = build_lw_detr(LWDETRConfig(**fields), COCO_IDS)
    assert sum(parameter.numel() for parameter in detector.parameters()) == count


SMALL: dict[str, Any] = {
    "neck": {"width": 32},
    "head": {
        "transformer": {"width": 32, "heads": 4, "cross_heads": 8, "feedforward": 64, "decoder_layers": 2},
        "num_queries": 12,
        "groups": 2,
    },
    "input": {"resize": {"name": "stretch", "size": 128}},
}
BACKBONES = {
    "LW-DETR": {"name": "vit", "width": 24, "layers": 3, "taps": (2, 3), "global_blocks": (2,), "strides": (16, 16)},
    "RF-DETR": {"name": "dinov2", "width": 24, "layers": 3, "taps": (1, 3), "strides": (16, 16), "positions": 6},
}


@pytest.mark.long
@pytest.mark.parametrize("name", ["LW-DETR", pytest.param("RF-DETR", marks=pytest.mark.slow)])
def test_export(name: str) -> None:
    torch.manual_seed(0)
    fields = {**SMALL, "backbone": BACKBONES[name]}
    fields["neck"] = {**SMALL["neck"], "scales": (2, 0.5)} if name == "LW-DETR" else {**SMALL["neck"], "norm": "ln"}
    detector = build_lw_detr(LWDETRConfig(**fields), Categories.of_names(["cat", "dog", "cow"]))
    enliven(detector)
    check_export(detector, make_batch(detector, [2, 1], targets=False))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"neck": {"width": 384}}, "neck.width: expected head.transformer.width, 256, found 384"),
        (
            {"neck": {"scales": (2, 0.5)}, "head": {"transformer": {"points": (2,)}}},
            "expected one for each of 2 levels",
        ),
        ({"backbone": {"name": "resnet18"}}, "the projector joins levels of one stride, found "),
        ({"input": {"resize": {"name": "stretch", "size": 608}}}, "input.resize: expected multiples of 64, found 608"),
        ({"input": {"resize": {"name": "short_side"}}}, "input.resize: expected {name: stretch, size: ...}"),
    ],
)
def test_parts_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LWDETRConfig(**fields)

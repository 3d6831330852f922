"""RT-DETR: parameters of the published forms, and inputs that it cannot take."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from detkit.detectors.rt_detr import RTDETRConfig, build_rt_detr
from detkit.structures import Categories

CATEGORIES = Categories.of_names([f"class {i}" for i in range(80)])
TRAINED = {"norm": "bn", "frozen_stages": 0}
R18 = {"backbone": {"name": "resnet18_vd", **TRAINED}, "neck": {"expansion": 0.5}}
R34 = {"backbone": {"name": "resnet34_vd", **TRAINED}, "neck": {"expansion": 0.5}}
R101 = {"backbone": {"name": "resnet101_vd"}, "neck": {"width": 384, "feedforward": 2048}}


def layers(count: int, **fields: Any) -> dict[str, Any]:
    return {"head": {"transformer": {"decoder_layers": count, **fields}}}


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        pytest.param({**R18, **layers(3)}, 20_184_464, id="R18"),
        pytest.param({**R34, **layers(4)}, 31_441_668, id="R34"),
        pytest.param({"neck": {"expansion": 0.5}, "head": {"layers_at_test": 3}}, 36_593_772, id="R50-m"),
        pytest.param({}, 42_891_372, id="R50"),
        pytest.param(R101, 76_556_268, id="R101"),
        pytest.param({**R18, **layers(3, points=1)}, 20_017_928, id="v2 R18, one point"),
        pytest.param({**R18, **layers(3, points=2)}, 20_073_440, id="v2 R18, two points"),
        pytest.param({**R18, **layers(3, points=(3, 3, 3))}, 20_128_952, id="v2 R18, three points"),
    ],
)
def test_counts_are_the_authors(fields: dict[str, Any], count: int) -> None:
    """Of the authors' code, built fresh; the affine parts of frozen norms are buffers in both."""
    with torch.device("meta"):
        detector = build_rt_detr(RTDETRConfig(**fields), CATEGORIES)
    assert sum(parameter.numel() for parameter in detector.parameters()) == count


@pytest.mark.parametrize(
    ("resize", "message"),
    [
        ({"name": "short_side"}, "input.resize: expected {name: stretch, size: ...}.*found short_side"),
        ({"name": "stretch", "size": 225}, "input.resize: expected multiples of 32, found 225"),
        ({"name": "stretch", "size": 224, "train_sizes": (224, 240)}, "expected multiples of 32, found 240"),
    ],
)
def test_pictures_fill_a_canvas_that_every_level_divides(resize: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RTDETRConfig(input={"resize": resize})  # type: ignore[arg-type]


def test_points_of_another_number_of_levels() -> None:
    with pytest.raises(ValidationError, match="points: expected one for each of 3 levels, found 2"):
        RTDETRConfig(**layers(3, points=(4, 4)))

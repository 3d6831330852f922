"""RT-DETR and RT-DETRv2 beside their authors' own code, from the same random weights, through their names.

DETKIT_RT_DETR names a clone of github.com/lyuwenyu/RT-DETR (Apache-2.0).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from detkit.detectors.rt_detr import RTDETRConfig, build_rt_detr
from detkit.structures import Categories
from detkit.weights.rt_detr import convert_keys
from tests.parity.conftest import AsRun, Ledger
from tests.parity.test_rt_detr import enliven, make_batch

CLASSES = 5
PARTS = ("nn", "nn.backbone", "zoo", "zoo.rtdetr")
VERSIONS = {"RT-DETR R18": "rtdetr_pytorch", "RT-DETRv2 R18": "rtdetrv2_pytorch"}


def register(*classes: Any, **_: Any) -> Any:
    """Their decorator, which enters a class in a table and returns it."""
    return classes[0] if classes else lambda own: own


@pytest.fixture(scope="module", params=list(VERSIONS))
def reference(request: pytest.FixtureRequest) -> Any:
    """Backbone, encoder and decoder of R18, without imports that the network does not need."""
    folder = os.environ.get("DETKIT_RT_DETR")
    if not folder:
        pytest.skip("DETKIT_RT_DETR is not set: a clone of github.com/lyuwenyu/RT-DETR")
    source = Path(folder) / VERSIONS[request.param] / "src"
    with pytest.MonkeyPatch.context() as patch:
        for part in ("", *PARTS):
            package = ModuleType(f"src.{part}".rstrip("."))
            package.__path__ = [str(source / part.replace(".", "/"))]
            patch.setitem(sys.modules, package.__name__, package)
        core = ModuleType("src.core")
        core.register = register  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "src.core", core)
        yield request.param, build_reference("v2" in request.param)
        for name in [name for name in sys.modules if name.startswith("src.")]:
            sys.modules.pop(name)


def build_reference(v2: bool) -> nn.Module:
    decoder = import_module(f"src.zoo.rtdetr.{'rtdetrv2_decoder' if v2 else 'rtdetr_decoder'}")
    neck = import_module("src.zoo.rtdetr.hybrid_encoder")
    model = nn.Module()
    model.backbone = import_module("src.nn.backbone.presnet").PResNet(18, freeze_norm=False, return_idx=[1, 2, 3])
    model.encoder = neck.HybridEncoder([128, 256, 512], expansion=0.5)
    options: dict[str, Any] = {"num_classes": CLASSES, "feat_channels": [256] * 3, "num_queries": 40}
    if v2:
        model.decoder = decoder.RTDETRTransformerv2(**options, num_layers=3, num_points=[4, 2, 3])
    else:
        model.decoder = decoder.RTDETRTransformer(**options, num_decoder_layers=3)
    enliven(model)
    return model.eval()


@torch.no_grad()
def test_outputs(reference: tuple[str, Any], as_run: AsRun, compare: Ledger) -> None:
    name, model = reference
    config = RTDETRConfig.model_validate(
        {
            "backbone": {"name": "resnet18_vd", "norm": "bn", "frozen_stages": 0},
            "neck": {"expansion": 0.5},
            "head": {
                "transformer": {"decoder_layers": 3, "points": (4, 2, 3) if "v2" in name else 4},
                "num_queries": 40,
            },
        }
    )
    detector = build_rt_detr(config, Categories.of_names([f"class {i}" for i in range(CLASSES)]))
    detector.load_state_dict(convert_keys(model.state_dict()))
    detector = as_run(detector).eval()
    batch = make_batch()
    images = detector.input(batch.images, batch.sizes())
    outputs = detector.network(images, batch.sizes())
    expected = model.decoder(model.encoder(model.backbone(images)))
    assert outputs.boxes[-1][..., :2].std(dim=1).min() > 0.05, "the queries should predict different things"
    compare(name, "the authors' code", "logits", [(outputs.logits[-1], expected["pred_logits"])])
    compare(name, "the authors' code", "boxes (parts)", [(outputs.boxes[-1], expected["pred_boxes"])])

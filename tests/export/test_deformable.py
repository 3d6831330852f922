"""RT-DETR and LW-DETR as files: deformable attention, and queries that start at the best cells, beside PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detkit.export.export import ExportOptions, export_source
from detkit.export.program import Form
from tests.export.test_modern_yolo import write_run

INPUT = {"resize": {"name": "stretch", "size": 96}}
TRANSFORMER = {"width": 32, "heads": 4, "feedforward": 48, "decoder_layers": 1}
MODELS: dict[str, dict[str, Any]] = {
    "rt_detr": {
        "name": "rt_detr",
        "backbone": {"name": "csp_darknet", "width": 0.125, "depth": 0.1},
        "neck": {"width": 32, "heads": 4, "feedforward": 48, "depth": 0.34},
        "head": {"transformer": TRANSFORMER, "num_queries": 12},
        "input": INPUT,
    },
    "lw_detr": {
        "name": "lw_detr",
        "backbone": {
            "name": "vit",
            "width": 24,
            "layers": 3,
            "heads": 2,
            "taps": (2, 3),
            "global_blocks": (2,),
            "strides": (16, 16),
        },
        "neck": {"width": 32, "scales": (2.0, 0.5)},
        "head": {"transformer": TRANSFORMER | {"cross_heads": 8}, "num_queries": 12, "groups": 2},
        "input": {"resize": {"name": "stretch", "size": 128}},
    },
}


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_a_file_does_what_the_detector_does(name: str, tmp_path: Path) -> None:
    source = write_run(MODELS[name], tmp_path / "model.pt")
    form = Form(batch=None if name == "rt_detr" else 1)  # any number of pictures takes twice as long to export
    report = export_source(source, tmp_path / "model.onnx", ExportOptions(form, num_pictures=2))
    assert not report.problems
    assert report.raw_differences
    assert report.matches is not None
    assert report.matches.torch >= 1

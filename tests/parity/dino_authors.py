"""DINO as its authors wrote it, on the CPU and without their CUDA kernel, as a witness.

DETKIT_DINO names a clone of github.com/IDEA-Research/DINO (Apache-2.0); its modules import timm.
"""

from __future__ import annotations

import os
import runpy
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import Tensor
from torchvision.ops import generalized_box_iou

PACKAGES = ("models", "util", "MultiScaleDeformableAttention")


@contextmanager
def authors_code() -> Iterator[SimpleNamespace]:
    """Their modules `dino` and `dn_components`, as long as the block runs. Skips where there is no clone.

    What asks for CUDA stays on the CPU; deformable attention is their PyTorch form; the backbone is not downloaded.
    Their generalised IoU adds 1e-6 to areas in parts of the picture, which for small boxes is no rounding: here it
    does not.
    """
    folder = os.environ.get("DETKIT_DINO")
    if not folder:
        pytest.skip("DETKIT_DINO is not set: a clone of github.com/IDEA-Research/DINO")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.syspath_prepend(folder)
        patch.setitem(sys.modules, "MultiScaleDeformableAttention", ModuleType("MultiScaleDeformableAttention"))
        patch.setattr(Tensor, "cuda", lambda self: self)
        move = Tensor.to
        patch.setattr(Tensor, "to", lambda self, *to, **more: self if to == ("cuda",) else move(self, *to, **more))
        dino = import_module("models.dino.dino")
        attention = import_module("models.dino.ops.modules.ms_deform_attn")
        core = import_module("models.dino.ops.functions.ms_deform_attn_func").ms_deform_attn_core_pytorch
        attention.MSDeformAttnFunction = SimpleNamespace(  # type: ignore[attr-defined]
            apply=lambda value, sizes, starts, at, weights, step: core(value, sizes, at, weights)
        )
        import_module("models.dino.backbone").is_main_process = lambda: False  # type: ignore[attr-defined]
        import_module("models.dino.matcher").generalized_box_iou = generalized_box_iou  # type: ignore[attr-defined]
        import_module("util.box_ops").generalized_box_iou = generalized_box_iou  # type: ignore[attr-defined]
        try:
            yield SimpleNamespace(dino=dino, dn_components=import_module("models.dino.dn_components"), folder=folder)
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
                del sys.modules[name]


def build_authors_dino(code: SimpleNamespace, config: str = "DINO_4scale", **changes: Any) -> tuple[Any, Any]:
    """The model of `config/DINO/CONFIG.py` with changes, and its criterion with the weights of the losses."""
    settings = runpy.run_path(str(Path(code.folder) / "config" / "DINO" / f"{config}.py"))
    settings = {name: value for name, value in settings.items() if not name.startswith("_")}
    model, criterion, _ = code.dino.build_dino(SimpleNamespace(device="cpu", **(settings | changes)))
    return model, criterion

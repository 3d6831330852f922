"""DN-DETR as its authors wrote it, on the CPU, as a witness.

DETKIT_DN_DETR names a clone of github.com/IDEA-Research/DN-DETR (Apache-2.0).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from torch import Tensor


@contextmanager
def authors_code() -> Iterator[SimpleNamespace]:
    """Their modules, as long as the block runs. Skips where there is no clone. What asks for CUDA stays on the CPU."""
    folder = os.environ.get("DETKIT_DN_DETR")
    if not folder:
        pytest.skip("DETKIT_DN_DETR is not set: a clone of github.com/IDEA-Research/DN-DETR")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name in ("models", "models.DN_DAB_DETR"):  # without their __init__, which imports a CUDA kernel
            package = ModuleType(name)
            package.__path__ = [str(Path(folder, *name.split(".")))]
            patch.setitem(sys.modules, name, package)
        patch.setattr(Tensor, "cuda", lambda self: self)
        move = Tensor.to
        patch.setattr(Tensor, "to", lambda self, *to, **more: self if to == ("cuda",) else move(self, *to, **more))
        parts = ("DABDETR", "matcher", "position_encoding", "transformer")
        try:
            yield SimpleNamespace(
                **{part: import_module(f"models.DN_DAB_DETR.{part}") for part in parts}, misc=import_module("util.misc")
            )
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] in ("models", "util")]:
                del sys.modules[name]

"""D-FINE and DEIM as their authors wrote them, as witnesses.

DETKIT_DFINE names a clone of github.com/Peterande/D-FINE, DETKIT_DEIM one of github.com/ShihuaHuang95/DEIM (both
Apache-2.0). Their packages import much that the network and the losses do not need, so their modules are loaded alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest


class Authors(NamedTuple):
    """Their modules."""

    backbone: Any
    encoder: Any
    decoder: Any
    criterion: Any
    matcher: Any


LAYOUTS = {  # environment variable: repository, folder of the package, its packages of the backbone and of the rest
    "DETKIT_DFINE": ("Peterande/D-FINE", "src", "nn.backbone", "zoo.dfine", "dfine_criterion"),
    "DETKIT_DEIM": ("ShihuaHuang95/DEIM", "engine", "backbone", "deim", "deim_criterion"),
}


@contextmanager
def authors_code(variable: str) -> Iterator[Authors]:
    """Their modules, as long as the block runs. Skips where there is no clone."""
    repository, package, backbone, network, criterion = LAYOUTS[variable]
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set: a clone of github.com/{repository}")
    name = f"{variable.lower()}_authors"
    try:
        for part in ("", "core", "misc", "misc.dist_utils", "nn", "zoo", backbone, network):
            module = ModuleType(f"{name}.{part}".rstrip("."))
            module.__path__ = [str(Path(folder, package, *part.split(".")))]
            sys.modules[module.__name__] = module
        sys.modules[f"{name}.core"].register = _register  # type: ignore[attr-defined]
        processes = sys.modules[f"{name}.misc.dist_utils"]
        processes.get_world_size = lambda: 1  # type: ignore[attr-defined]
        processes.is_dist_available_and_initialized = lambda: False  # type: ignore[attr-defined]
        modules = [f"{backbone}.hgnetv2", *(f"{network}.{part}" for part in ("hybrid_encoder", "dfine_decoder"))]
        modules += [f"{network}.{part}" for part in (criterion, "matcher")]
        yield Authors(*(import_module(f"{name}.{part}") for part in modules))
    finally:
        for key in [key for key in sys.modules if key.split(".")[0] == name]:
            del sys.modules[key]


def _register(*_: object, **__: object) -> Callable[[Any], Any]:
    return lambda cls: cls

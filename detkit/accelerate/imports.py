"""Imports torch and torchvision without garbage collection.

They make so many objects that collections take two fifths of the time of the imports of a training: 3.2 s of one core
without this, 1.9 s with it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

LARGE = ("torch", "torchvision")


def quicken_imports() -> None:
    """From now on, the large libraries are imported faster by this process. Call it before they are."""
    if not any(isinstance(finder, _WithoutCollections) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WithoutCollections(LARGE))


class _WithoutCollections(MetaPathFinder):
    """Finds these modules as Python does; nothing is collected while one is imported, nor its objects later."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_without_collections(module: ModuleType) -> None:
            if not gc.isenabled():  # within another one of them
                run(module)
                return
            gc.disable()
            try:
                run(module)
            finally:
                gc.enable()
                gc.freeze()  # later collections leave out what is there now

        spec.loader.exec_module = run_without_collections  # type: ignore[method-assign]
        return spec

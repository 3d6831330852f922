"""One direction of imports, and a light `detkit.ops.iou`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each room may import of detkit, besides itself. Rooms that stand side by side are on one line.
LEAVES = {"config"}
OPS = {"structures"}
NN = DATA = EVALUATION = {"ops", *OPS, *LEAVES}
DETECTORS = {"nn", *NN}
ENGINE = WEIGHTS = {"detectors", "data", "evaluation", "engine", "weights", *DETECTORS}
CLI = {"cli", *ENGINE}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "config": set(),
    "structures": set(),
    "ops": OPS,
    "nn": NN,
    "data": DATA,
    "evaluation": EVALUATION,
    "detectors": DETECTORS,
    "engine": ENGINE,
    "weights": WEIGHTS,
    "cli": CLI,
    "__main__": CLI,
}
HEAVY = {"torchvision", "cv2", "albumentations", "pycocotools", "matplotlib", "pydantic"}
FILES = sorted((ROOT / "detkit").rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT / "detkit").parts[0].removesuffix(".py")


def imported_rooms(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of detkit anywhere in a file, also within functions, of a module in `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = list(package[: len(package) + 1 - node.level]) if node.level else []
            start += node.module.split(".") if node.module else []
            modules = [[*start, alias.name] for alias in node.names]
        else:
            continue
        for module in modules:
            if module[0] == "detkit":
                yield node.lineno, module[1] if len(module) > 1 else "__init__"


def upward_imports(path: Path, source: str) -> list[str]:
    own = room(path)
    package = path.relative_to(ROOT).parts[:-1]
    return [
        f"{path.relative_to(ROOT)}:{line}: {own} may not import {other}"
        for line, other in imported_rooms(source, package)
        if other not in {own, *MAY_IMPORT[own]}
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_goes_upward(path: Path) -> None:
    assert room(path) in MAY_IMPORT, f"{path.relative_to(ROOT)}: not a room of the design"
    assert upward_imports(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/iou.py", "import detkit.nn.losses"),
        ("ops/iou.py", "from detkit.config import Config"),
        ("nn/heads/rpn.py", "from ...detectors import faster_rcnn"),
        ("nn/losses.py", "from detkit import data"),
        ("data/voc.py", "def f():\n    from detkit.evaluation.voc import average_precision"),
        ("detectors/ssd.py", "from detkit.engine.train import train"),
        ("structures.py", "from detkit.ops.boxes import box_area"),
        ("config.py", "from . import structures"),
        ("engine/train.py", "import torch, detkit.cli"),
    ],
)
def test_an_upward_import_is_seen(path: str, source: str) -> None:
    assert len(upward_imports(ROOT / "detkit" / path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/iou.py", "import torch\nfrom detkit.ops.boxes import box_area\nfrom .boxes import box_area"),
        ("nn/heads/rpn.py", "from ...ops import nms\nfrom ..losses import focal\nfrom detkit.config import Config"),
        ("engine/train.py", "from detkit import data, detectors, evaluation, weights"),
    ],
)
def test_a_downward_import_is_allowed(path: str, source: str) -> None:
    assert upward_imports(ROOT / "detkit" / path, source) == []


def test_iou_imports_torch_and_nothing_else_that_is_heavy() -> None:
    program = "import sys, detkit.ops.iou; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    packages = set(loaded.stdout.split())
    assert "torch" in packages
    assert packages & HEAVY == set()

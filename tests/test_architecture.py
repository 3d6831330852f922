"""One direction of imports, what is imported when, and limits of size."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each room may import of detkit, besides itself. Rooms that stand side by side are on one line.
LEAVES = {"config", "files", "pickles"}
OPS = {"structures"}
NN = DATA = EVALUATION = {"ops", "formats", *OPS, *LEAVES}
DETECTORS = {"nn", *NN}
ENGINE = WEIGHTS = {"detectors", "data", "evaluation", "engine", "weights", *DETECTORS}
FRONT_DOORS = ENGINE  # `detkit.load`, `detkit.predict`, `detkit.train`
EXPORT = {"__init__", "export", *ENGINE}  # `__init__` for the version
INSPECT = {"inspect", *EXPORT}
SERVE = {"serve", *EXPORT}
CLI = {"__init__", "cli", *INSPECT, *SERVE}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": FRONT_DOORS,
    "config": {"config_yaml"},
    "config_yaml": set(),
    "files": {"config"},
    "pickles": {"config"},
    "structures": set(),
    "formats": {"structures", "config"},
    "ops": OPS,
    "nn": NN,
    "data": DATA,
    "evaluation": EVALUATION,
    "detectors": DETECTORS,
    "engine": ENGINE,
    "weights": WEIGHTS,
    "export": EXPORT,
    "inspect": INSPECT,
    "serve": SERVE,
    "accelerate": {"nn", "evaluation", *NN},
    "cli": CLI,
    "__main__": CLI,
}
# One dispatch each: nothing else needs to know that there are fast paths, that a file can be a detector, that
# detections have other forms, or that a detector's own `predict` is the front door's.
DISPATCHES = {
    "ops/dispatch.py": "accelerate",
    "engine/speed.py": "accelerate",
    "engine/sources.py": "export",
    "structures/detections.py": "formats",
    "detectors/detector.py": "__init__",
}
HEAVY = {"torchvision", "cv2", "albumentations", "pycocotools", "matplotlib", "pydantic"}
MAX_FUNCTION_LINES, MAX_FILE_LINES = 50, 370  # the ceiling; a function is best below 40, a file at 80 to 250
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
    allowed = {own, *MAY_IMPORT[own]}
    allowed.add(DISPATCHES.get(path.relative_to(ROOT / "detkit").as_posix(), own))
    package = path.relative_to(ROOT).parts[:-1]
    return [
        f"{path.relative_to(ROOT)}:{line}: {own} may not import {other}"
        for line, other in imported_rooms(source, package)
        if other not in allowed
    ]


def test_no_import_goes_upward() -> None:
    assert FILES
    for path in FILES:
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
        ("structures/objects.py", "from detkit.ops.boxes import box_area"),
        ("config.py", "from . import structures"),
        ("engine/train.py", "import torch, detkit.cli"),
        ("engine/train.py", "from detkit.accelerate.memory import keep_memory"),
        ("engine/run.py", "import detkit"),
        ("accelerate/nms.py", "from detkit.engine.train import train"),
        ("__init__.py", "from detkit.cli import main"),
        ("serve/app.py", "from detkit.inspect.report import page"),
        ("inspect/report/page.py", "from detkit.serve.app import build_app"),
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
        ("ops/dispatch.py", "from detkit.accelerate import kernels"),
        ("cli/training.py", "import detkit"),
    ],
)
def test_a_downward_import_is_allowed(path: str, source: str) -> None:
    assert upward_imports(ROOT / "detkit" / path, source) == []


def loaded_by(program: str) -> set[str]:
    """The modules that a fresh Python has loaded after `program`."""
    program += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_iou_imports_torch_and_nothing_else_that_is_heavy() -> None:
    modules = loaded_by("import detkit.ops.iou")
    assert "torch" in modules
    assert modules & HEAVY == set()


def test_detkit_imports_nothing_heavy() -> None:
    assert loaded_by("import detkit; detkit.load") & {"torch", "numpy", *HEAVY} == set()


def test_prediction_imports_only_what_it_needs() -> None:
    """A detector on darknet's layers; the others are built by torchvision, which takes seconds to import."""
    program = """
import numpy as np
from detkit import predict
from detkit.config import load_config
from detkit.detectors.build import build_detector
from detkit.engine.settings import RunConfig
from detkit.structures import Categories
config = load_config("configs/coco/yolov3_tiny.yaml", RunConfig, ["model.backbone.weights=null"])
predict(build_detector(config.model, Categories.of_names(["a"])), np.zeros((32, 32, 3), np.uint8))
"""
    modules = loaded_by(program)
    assert {"torch", "cv2"} <= modules
    unneeded = {"albumentations", "sklearn", "skimage", "matplotlib", "pycocotools", "tensorboard", "transformers"}
    assert modules & {"torchvision", "torch._dynamo", *unneeded} == set()
    assert loaded_by("import detkit.engine.predict") & {"torchvision", "torch._dynamo", "scipy", *unneeded} == set()


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in ("train", "eval", "predict"))])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    program = f"import sys, detkit.cli\ntry: detkit.cli.main({arguments})\nexcept SystemExit: pass"
    modules = loaded_by(program)
    assert "detkit" in modules
    assert modules & {"torch", "numpy", "cv2"} == set()


def test_functions_and_files_are_short() -> None:
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") <= MAX_FILE_LINES, f"{path.relative_to(ROOT)}: split it"
        lengths = {
            f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef)
        }
        assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}

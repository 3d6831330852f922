"""The report of all exports: random weights that mean something, and a page that hides no failure."""

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.engine.config_files import load_named
from detkit.engine.sources import load_detector
from detkit.export.report_text import Both, Bounds, Matches, Report
from detkit.structures import Batch, Categories, ImageInfo
from detkit.weights.torchvision import convert_keys

ROOT = Path(__file__).parents[2]
SSDLITE = "ssdlite320_mobilenet_v3_large"


def load(name: str) -> Any:
    """A module of benchmarks/, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module(name)


weights, sources, texts, report = map(load, ("random_weights", "export_sources", "export_page", "export_report"))


def spread_detector(name: str) -> tuple[AnyDetector, Batch]:
    """With the random weights of the report, and the pictures that they are spread over."""
    torch.manual_seed(0)
    detector = build_detector(load_named(name).model, Categories.of_names(["a", "b"]))
    batch = Batch(
        torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8),
        tuple(ImageInfo(i, (224, 224), (224, 224), (1.0, 1.0)) for i in range(2)),
        None,
    )
    weights.spread(detector, batch)
    return detector, batch


def columns(outputs: Tensor, count: int) -> tuple[Tensor, float]:
    """The mean of each of `count` outputs that follow each other, and the deviation of all from their means."""
    rows = outputs.reshape(-1, count)
    return rows.mean(dim=0), float((rows - rows.mean(dim=0)).std(correction=0))


@torch.no_grad()
def test_the_logits_of_random_weights_differ_from_place_to_place() -> None:
    detector, batch = spread_detector("faster_rcnn")
    rpn = detector(batch).rpn
    anchors = 6  # of a cell: 2 sizes, 3 ratios
    for outputs, count, deviation in (
        (rpn.logits[0], anchors, 2.0),
        (rpn.deltas[:, : 28 * 28 * anchors], 4 * anchors, 0.2),
    ):
        means, spread = columns(outputs, count)
        assert means.abs().max() < 1e-3
        assert spread == pytest.approx(deviation, rel=1e-3)
    norm = next(module for module in detector.modules() if isinstance(module, nn.BatchNorm2d))
    pixels = detector.backbone.conv1(detector.input(batch.images, batch.sizes()))
    assert torch.allclose(norm.running_mean, pixels.mean(dim=(0, 2, 3)), atol=1e-5)
    assert norm.bias is not None
    assert set(norm.bias.tolist()) == {1.0}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "scores_of", "least"),
    [
        ("ssd", lambda outputs: outputs.logits, 1.0),
        ("yolov1", lambda outputs: outputs.confidences, 0.1),
        ("yolov2", lambda outputs: outputs.raw[..., 4:], 1.0),
        ("yolov3", lambda outputs: outputs.raw[..., 4:], 1.0),
        ("detr", lambda outputs: outputs.logits[-1], 1.0),
        ("detr", lambda outputs: outputs.proposals.logits[-1], 1.0),
    ],
)
def test_the_scores_of_an_image_are_spread(name: str, scores_of: Callable[[Any], Tensor], least: float) -> None:
    """With plain random weights their deviation is a tenth of this, or less."""
    detector, batch = spread_detector(name)
    for scores in scores_of(detector(batch)):  # [places, classes]
        assert scores.std(dim=0).min() > least


def test_a_publisher_and_detkit_have_the_same_random_weights(tmp_path: Path) -> None:
    source = sources.prepare(SSDLITE, tmp_path, tmp_path / "none.cfg", tmp_path)
    assert source.weights == "random"
    detector, settings = load_detector(source.source)
    assert settings is None
    own = convert_keys(source.own[0].state_dict())
    state = {name: tensor for name, tensor in detector.state_dict().items() if not name.endswith("tracked")}
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    assert own["head.classifier.0.1.weight"].std() > 0.05, "torchvision's own is 0.03"


def test_a_run_is_preferred_to_random_weights(run: Path, tmp_path: Path) -> None:
    source = sources.prepare(run.name, run.parent, tmp_path / "none.cfg", tmp_path)
    assert source.source == str(run)
    assert source.own is None
    trained = load_detector(run)[1]
    assert trained is not None
    assert source.weights == f"trained, {trained.train.epochs} of {trained.train.epochs} epochs"


@pytest.mark.parametrize(
    ("matches", "text"),
    [
        (Matches(10, 10, 0, 0, 0), "100 % of 20"),
        (Matches(1000, 1000, 1, 4, 0), "99.95 % of 2,000, 4 excused"),
        (Matches(500_000, 500_000, 1, 0, 0), "99.99 % of 1,000,000"),
    ],
)
def test_a_share_is_not_rounded_up(matches: Matches, text: str) -> None:
    assert texts.matched_share(matches) == text


def example(**changes: Any) -> Report:
    plain: dict[str, Any] = {
        "detector": "SSD",
        "format": "onnx",
        "precision": "float32",
        "pictures": "exact",
        "raw": False,
        "mebibytes": 3.25,
        "data": "16 drawn pictures",
        "batch_sizes": (1, 2, 6, 7),
        "canvases": ((224, 224),),
        "raw_differences": {"logits": 2e-5, "deltas": 1e-6},
        "regions": 0,
        "stray_regions": 0,
        "matches": Matches(40, 40, 0, 0, 0),
        "matches_with_opencv": None,
        "metrics": {},
        "no_metrics": "drawn",
        "milliseconds": Both(1.0, 1.0),
        "bounds": Bounds(),
    }
    return Report(**{**plain, **changes})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"raw_differences": {"logits": 2e-4}}, "logits by 2.0e-04"),
        ({"raw_differences": {"logits": math.inf}}, "logits by inf"),
        ({"matches": Matches(40, 40, 2, 0, 0)}, "2 of 80 detections have no counterpart"),
        ({"matches": Matches(0, 0, 0, 0, 0)}, "there was no detection to compare"),
        ({"batch_sizes": (1, 6)}, "batches of 2, 7 were not run"),
    ],
)
def test_what_misses_the_bar(changes: Mapping[str, Any], problem: str | None) -> None:
    problems = report.missed(example(**changes))
    assert len(problems) == (problem is not None)
    assert problem is None or problem in problems[0]


def test_a_page_shows_both_formats_and_what_is_missing() -> None:
    torch_export = example(format="torch_export", canvases=((224, 224), (300, 300)), raw_differences={"logits": 0.0})
    rows = [
        texts.Row("ssd", "random", {".onnx": example(), ".pt2": torch_export}),
        texts.Row("rcnn", problems=["ONNX: KeyError: 'a|b'"]),
        texts.Row("peer", "random", {".onnx": example()}, own=("yes", "TypeError: x_y")),
    ]
    lines = texts.page(rows).splitlines()
    assert "| ssd | random | 2e-05 | 100 % of 80 | 3.2 | 0e+00 | 100 % of 80 | 3.2 | 1, 2, 6, 7 | 224 x 224 |" in lines
    assert "| rcnn | - | - | - | - | - | - | - | - | - |" in lines
    assert r"* rcnn: ONNX: KeyError: 'a\|b'" in lines
    assert r"| peer | yes | TypeError: x\_y |" in lines
    assert "No row misses the bar." in texts.page(rows[:1]).splitlines()


def test_a_detector_that_fails_is_a_row_and_the_next_one_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(source: str, output: Path, options: Any) -> Report:
        if output.suffix == ".pt2":
            raise ValueError("no program. It has no core.")
        return example()

    cfg = tmp_path / "missing.cfg"
    monkeypatch.setattr(report, "export_source", export)
    monkeypatch.setattr(report, "prepare", lambda name, *_: sources.Source(name, "random"))
    arguments = ["export_report.py", "--only", "missing", "ssd", "--darknet", str(cfg)]
    monkeypatch.setattr("sys.argv", [*arguments, "--output", str(tmp_path / "page.md")])
    assert report.main() == 1
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    for name in ("missing", "ssd"):
        assert f"* {name}: torch.export: ValueError: no program" in page
        assert f"| {name} | random | 2e-05 | 100 % of 80 |" in page
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", arguments[:3] + arguments[4:])
    assert report.main() == 1
    assert "* missing: missing: its files are not here: --darknet names its .cfg" in capsys.readouterr().out


def test_an_error_is_its_class_and_first_sentence() -> None:
    error = RuntimeError("\x1b[96mFailed to trace.\x1b[0m This is step 1.\nMore")
    assert report.described(error) == "RuntimeError: Failed to trace"
    error.__cause__ = KeyError("size")
    assert report.described(error) == "RuntimeError: Failed to trace (from KeyError)"
    assert report.described(UserError("ssd: no such file; name another")) == "ssd: no such file; name another"
    assert report.described(ValueError("word " * 100)).endswith("...")


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if int((x > 0).sum()) > 3 else x


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.parametrize(("model", "works"), [(Doubling(), True), (Counting(), False)])
def test_what_torch_makes_of_a_model(model: nn.Module, works: bool, tmp_path: Path) -> None:
    answers = report.own_exports(sources.Source("", "random", (model, (torch.ones(2, 3),))), tmp_path)
    assert len(answers) == 2
    for answer in answers:
        assert (answer == "yes") == works, answer
    assert works or answers[0].startswith("GuardOnDataDependentSymNode: ")

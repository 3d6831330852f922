"""What a comparison sees: faults in a file's outputs and detections, and only those."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detkit.detectors.detector import Detector
from detkit.export import report as report_module
from detkit.export.comparison_data import ComparisonData, comparison_data
from detkit.export.export import describe
from detkit.export.files import take_outputs, write_onnx
from detkit.export.graph import Whole
from detkit.export.program import Form, complete_form, example_inputs, export_program, output_names
from detkit.export.report import Limited, ProgramAndFile, compare, difference, match_all, match_regions, measure
from detkit.export.report_text import Both, Bounds, Matches, Report
from detkit.export.runtime import Runner
from detkit.structures import Categories, Detections, Objects, Sample
from tests.engine.settings import make_config, write_pictures
from tests.export.detectors import Cells, Parts, Proposed, RandomProposals, random_pictures

ANIMALS = Categories.of_names(["cat", "dog"])
SQUARE = (0.0, 0.0, 100.0, 100.0)
BOUNDS = Bounds()
Outputs = dict[str, np.ndarray]


def detections(*rows: tuple[int, float, tuple[float, ...]]) -> Detections:
    """Of (label, score, box)."""
    labels, scores, boxes = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    objects = Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )
    return Detections(objects, ANIMALS)


def matched(expected: Detections, actual: Detections, limit: int = 100) -> Matches:
    return match_all([(expected, limit)], [(actual, limit)])


def shifted(dx: float) -> tuple[float, ...]:
    return (dx, 0.0, 100.0 + dx, 100.0)


def test_equal_detections_match_in_any_order() -> None:
    far = (200.0, 0.0, 300.0, 50.0)
    one = detections((0, 0.9, SQUARE), (1, 0.9, SQUARE), (0, 0.9, far))
    other = detections((1, 0.9, SQUARE), (0, 0.9, far), (0, 0.9, SQUARE))
    assert matched(one, other) == Matches(torch=3, file=3, unmatched=0, excused=0, invalid=0)
    assert matched(detections(), detections()) == Matches(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("row", "unmatched"),
    [
        ((0, 0.5009, SQUARE), 0),
        ((0, 0.5011, SQUARE), 2),
        ((0, 0.4989, SQUARE), 2),
        ((1, 0.5, SQUARE), 2),
        ((0, 0.5, shifted(0.4)), 0),  # IoU 99.6 / 100.4 = 0.992
        ((0, 0.5, shifted(0.6)), 2),  # 99.4 / 100.6 = 0.988
    ],
)
def test_a_counterpart_has_the_class_the_box_and_the_score(row: Any, unmatched: int) -> None:
    assert matched(detections((0, 0.5, SQUARE)), detections(row)) == Matches(1, 1, unmatched, 0, 0)


def test_a_detection_has_one_counterpart() -> None:
    twice = detections((0, 0.5, SQUARE), (0, 0.5, SQUARE))
    assert matched(twice, detections((0, 0.5, SQUARE))) == Matches(2, 1, 1, 0, 0)
    assert matched(detections((0, 0.5, SQUARE)), twice) == Matches(1, 2, 1, 0, 0)


def test_as_many_as_possible_are_matched() -> None:
    """0.5012 is near 0.5005 alone, so 0.5000 must be left to 0.4995, though 0.5005 is as near."""
    one = detections((0, 0.5012, SQUARE), (0, 0.5, SQUARE))
    assert matched(one, detections((0, 0.5005, SQUARE), (0, 0.4995, SQUARE))).unmatched == 0


def test_scores_at_the_threshold() -> None:
    assert matched(detections((0, 0.0502, SQUARE)), detections((0, 0.0498, SQUARE))) == Matches(1, 0, 0, 0, 0)
    assert matched(detections((0, 0.0505, SQUARE)), detections()) == Matches(1, 0, 0, 1, 0)
    assert matched(detections((0, 0.0515, SQUARE)), detections()) == Matches(1, 0, 1, 0, 0)
    assert matched(detections((0, 0.0400, SQUARE)), detections()) == Matches(0, 0, 0, 0, 0)


def test_the_last_of_a_full_list_needs_no_counterpart() -> None:
    """Rounding decides which of two equal scores is cut."""
    far = (200.0, 0.0, 300.0, 50.0)
    one, other = (detections((0, 0.9, SQUARE), (0, score, box)) for score, box in ((0.3, SQUARE), (0.2998, far)))
    assert matched(one, other, limit=2) == Matches(2, 2, 0, 2, 0)
    assert matched(one, other, limit=3) == Matches(2, 2, 2, 0, 0)


@pytest.mark.parametrize(
    "row", [(0, float("nan"), SQUARE), (0, 0.9, (0.0, 0.0, float("nan"), 9.0)), (2, 0.9, SQUARE), (-1, 0.9, SQUARE)]
)
def test_detections_that_are_none(row: Any) -> None:
    assert matched(detections(), detections(row)) == Matches(torch=0, file=1, unmatched=1, excused=0, invalid=1)


def test_images_are_matched_apart_and_summed() -> None:
    one, other = (detections((0, 0.9, SQUARE)), 9), (detections((1, 0.9, SQUARE)), 9)
    assert match_all([one, other], [one, other]) == Matches(2, 2, 0, 0, 0)
    assert match_all([one, other], [other, one]) == Matches(2, 2, 4, 0, 0)


def test_difference_is_relative_above_one() -> None:
    expected = torch.tensor([0.5, 10.0, -100.0, float("inf")])
    assert difference(expected, torch.tensor([0.5, 10.0, -100.0, float("inf")])) == 0
    assert difference(expected, torch.tensor([0.75, 10.0, -100.0, float("inf")])) == 0.25
    assert difference(expected, torch.tensor([0.5, 10.5, -101.0, float("inf")])) == 0.05
    assert difference(expected, torch.tensor([0.5, 10.0, -100.0, 0.0])) == float("inf")
    assert difference(expected, expected[:2]) == float("inf")
    assert difference(torch.zeros(0), torch.zeros(0)) == 0


def test_difference_of_boxes_is_relative_to_their_largest_coordinate() -> None:
    """Half a pixel at the left side of a box that ends at 200 px; in a box within 1 px it counts in full."""
    expected = torch.tensor([[[0.5, 0.0, 200.0, 100.0], [0.0, 0.0, 0.25, 0.25]]])
    actual = expected.clone()
    actual[0, 0, 0] = 0.0
    assert difference(expected, actual, boxes=True) == 0.0025
    assert difference(expected, actual) == 0.5
    actual[0, 1, 0] = 0.125
    assert difference(expected, actual, boxes=True) == 0.125


def test_nan_differs_from_everything() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert difference(nan, nan) == difference(nan, torch.ones(2)) == difference(torch.ones(2), nan) == float("inf")
    box = torch.tensor([[0.0, 0.0, float("nan"), 9.0]])
    assert (
        difference(box, torch.ones(1, 4), boxes=True) == difference(torch.ones(1, 4), box, boxes=True) == float("inf")
    )


def test_regions_are_matched_within_their_image() -> None:
    """Those of image 0 change places; of image 1 one moves by 0.02 px; what is not valid has no counterpart."""
    boxes = torch.arange(6.0)[:, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    images = torch.tensor([0, 0, 0, 1, 1, 1])
    valid = torch.tensor([True, True, False, True, True, False])
    moved = boxes[[1, 0, 2, 3, 4, 5]].clone()
    moved[0] += 0.005
    moved[4, 2] += 0.02
    rows, others, strays = match_regions((boxes, images, valid), (moved, images, valid))
    assert dict(zip(rows.tolist(), others.tolist(), strict=True)) == {0: 1, 1: 0, 3: 3}
    assert strays == 2
    nowhere = match_regions((boxes, images, valid), (moved, images, torch.zeros_like(valid)))
    assert [len(part) for part in nowhere[:2]] == [0, 0]
    assert nowhere[2] == 4


class Changed(Runner):
    """A program in the place of its file, whose outputs are changed."""

    metadata = None

    def __init__(self, program: Callable[..., dict[str, torch.Tensor]], change: Callable[[Outputs], None]) -> None:
        self.program, self.change = program, change

    def __call__(self, inputs: Any) -> Outputs:
        outputs = self.program(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        arrays = {name: value.numpy().copy() for name, value in outputs.items()}
        self.change(arrays)
        return arrays


def nothing(outputs: Outputs) -> None:
    pass


class Case:
    """A detector with data, and the report on a file that does what the detector does but for `change`."""

    def __init__(self, detector: Detector[Any], data: ComparisonData, folder: Path, form: Form, program: Any) -> None:
        self.detector, self.data, self.form, self.program = detector, data, form, program
        self.path = folder / "model.onnx"
        self.path.write_bytes(bytes(2**19))

    def report(self, change: Callable[[Outputs], None] = nothing, bounds: Bounds = BOUNDS, **metadata: Any) -> Report:
        description = describe(self.detector, self.form, None, "none").model_copy(update=metadata)
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            runner = Changed(self.program.module(), change)
            patch.setattr(report_module, "open_runner", lambda path: (runner, description))
            return compare(self.detector, self.program, self.path, self.path, self.data, bounds)


def uncompiled(detector: Detector[Any], form: Form) -> Any:
    """What is exported, in the place of the exported program, which takes seconds to have."""
    whole = Whole(detector, form.pictures, detections=not form.raw, raw=True)
    names = set(example_inputs(detector, form))

    def program(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        assert set(inputs) == names
        return whole(**inputs)

    return SimpleNamespace(module=lambda: program)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> ComparisonData:
    """Twelve pictures of cats and dogs, of which the first ten are compared."""
    settings = make_config(write_pictures(tmp_path_factory.mktemp("data"), 12))
    return comparison_data(Cells(), settings, 10, canvas=None)


@pytest.fixture(scope="module")
def cells(labelled: ComparisonData, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A detector of cats, dogs and birds."""
    detector = Cells()
    detector.categories = Categories.of_names(["dog", "bird", "cat"])
    return Case(detector, labelled, tmp_path_factory.mktemp("cells"), Form(), uncompiled(detector, Form()))


def proposed_data() -> ComparisonData:
    source, pictures = RandomProposals(), random_pictures((60, 50), (40, 64), (70, 30))
    samples = [Sample(image, Objects.empty(), i, source.of_picture(image)) for i, image in enumerate(pictures)]
    return ComparisonData(tuple(samples), None, "pictures")


@pytest.fixture
def proposed(tmp_path: Path) -> Case:
    """A detector with a row of outputs for each region."""
    detector = Proposed("keep")
    return Case(detector, proposed_data(), tmp_path, Form(), uncompiled(detector, Form()))


def test_a_file_that_does_what_the_detector_does(cells: Case) -> None:
    report = cells.report()
    assert report.problems == ()
    assert report.matches is not None
    assert report.matches.torch == report.matches.file >= 10
    assert (report.matches.unmatched, report.matches.invalid) == (0, 0)
    assert report.matches_with_opencv is None
    assert report.raw_differences == {"raw.logits": 0.0}
    assert report.batch_sizes == (1, 2, 7)
    assert report.canvases == ((64, 64),)
    assert report.mebibytes == 0.5
    assert set(report.metrics) == {"AP", "AP50"}
    assert report.metrics["AP"].torch == report.metrics["AP"].file
    assert report.milliseconds.torch > 0
    assert report.milliseconds.file > 0
    assert (report.format, report.precision, report.pictures, report.detector) == ("onnx", "float32", "exact", "Cells")


@pytest.mark.long
def test_an_onnx_file(cells: Case, tmp_path: Path) -> None:
    """A real program and real files; batches of 1, 2 and 7 through onnxruntime."""
    form = complete_form(Form(), cells.detector)
    metadata, program = describe(cells.detector, form, None, "none"), export_program(cells.detector, form, raw_too=True)
    names = output_names(cells.detector, form, raw_too=True)
    complete, result = tmp_path / "complete.onnx", tmp_path / "result.onnx"
    write_onnx(program, metadata.model_copy(update={"outputs": names}), complete)
    take_outputs(complete, metadata, result)
    report = compare(cells.detector, program, complete, result, cells.data)
    assert report.problems == ()
    assert 0 <= report.raw_differences["raw.logits"] < 1e-5
    assert report.batch_sizes == (1, 2, 7)
    assert report.mebibytes == result.stat().st_size / 2**20


def shift_boxes(outputs: Outputs) -> None:
    outputs["boxes"] += 3


def change_labels(outputs: Outputs) -> None:
    outputs["labels"] = (outputs["labels"] + 1) % 3


def drop_half(outputs: Outputs) -> None:
    outputs["counts"] = outputs["counts"] // 2


def spoil_scores(outputs: Outputs) -> None:
    outputs["scores"][:, 0] = np.nan


@pytest.mark.parametrize("change", [shift_boxes, change_labels, drop_half, spoil_scores])
def test_wrong_detections_are_a_problem(cells: Case, change: Callable[[Outputs], None]) -> None:
    report = cells.report(change)
    assert any("detections have no counterpart (expected none)" in problem for problem in report.problems)
    assert report.raw_differences == {"raw.logits": 0.0}
    assert report.summary().startswith("differs from the detector")


def test_detections_that_are_not_finite_are_a_problem_in_8_bits_too(cells: Case) -> None:
    report = cells.report(spoil_scores, precision="int8")
    assert report.problems == ("10 detections of the file are not finite or of no class (expected none)",)
    assert report.metrics == {}
    assert "not finite" in report.no_metrics


def add(value: float) -> Callable[[Outputs], None]:
    def change(outputs: Outputs) -> None:
        outputs["raw.logits"][0, 0, 0, 0] += value

    return change


def test_a_wrong_output_of_the_network_is_a_problem(cells: Case) -> None:
    report = cells.report(add(10.0))
    assert report.raw_differences["raw.logits"] > 1
    (problem,) = report.problems
    assert "1 of 1 outputs of the network differ, most of all raw.logits by" in problem
    assert cells.report(add(10.0), Bounds(raw_difference=100.0)).problems == ()
    assert cells.report(add(10.0), precision="int8").problems == ()


def test_the_largest_difference_of_all_batches_counts(cells: Case) -> None:
    changes = iter([add(10.0)])
    report = cells.report(lambda outputs: next(changes, nothing)(outputs))
    assert report.raw_differences["raw.logits"] > 1


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_output_that_is_not_a_number_is_a_problem(cells: Case, precision: str) -> None:
    report = cells.report(add(float("nan")), precision=precision)
    assert len(report.problems) == 1
    assert "raw.logits by inf" in report.problems[0]


def test_random_weights_that_are_not_numbers_are_a_problem(labelled: ComparisonData, tmp_path: Path) -> None:
    """Both sides give no detection at all."""
    detector = Cells()
    nn.init.constant_(detector.conv.weight, float("nan"))
    report = Case(detector, labelled, tmp_path, Form(), uncompiled(detector, Form())).report()
    assert report.matches == Matches(0, 0, 0, 0, 0)
    assert len(report.problems) == 1
    assert "raw.logits by inf" in report.problems[0]


def test_boxes_of_the_network_are_compared_as_boxes() -> None:
    box = np.array([[[0.5, 0.0, 200.0, 100.0]]], np.float32)
    program: Any = SimpleNamespace(module=lambda: lambda images: {"raw.boxes": torch.from_numpy(box)})
    file: Any = lambda inputs: {"raw.boxes": box - np.array([0.5, 0.0, 0.0, 0.0], np.float32)}  # noqa: E731
    pair = ProgramAndFile(program, file)
    pair({"images": np.zeros((1, 3, 8, 16), np.uint8)})
    assert pair.differences == {"raw.boxes": 0.0025}
    assert pair.shapes == {(1, (8, 16))}


@pytest.fixture
def parts(tmp_path: Path) -> Case:
    """A detector with masks and keypoints."""
    detector, samples = (
        Parts("keep"),
        tuple(Sample(image, Objects.empty(), i) for i, image in enumerate(random_pictures((60, 50), (40, 64)))),
    )
    data = ComparisonData(samples, None, "pictures")
    return Case(detector, data, tmp_path, Form(), uncompiled(detector, Form()))


def test_masks_and_heat_maps_are_compared(parts: Case) -> None:
    def change(outputs: Outputs) -> None:
        outputs["masks"][0, 1, 2, 3] += 0.25
        outputs["keypoint_heatmaps"][0, 0, 1] += np.nan

    expected = {"masks": 0.0, "keypoint_heatmaps": 0.0, "raw.logits": 0.0}
    assert parts.report().raw_differences == expected
    report = parts.report(change)
    assert report.raw_differences == {"masks": pytest.approx(0.25), "keypoint_heatmaps": np.inf, "raw.logits": 0.0}
    (problem,) = report.problems
    assert problem.startswith("2 of 3 outputs of the network differ, most of all keypoint_heatmaps by inf")


def test_masks_belong_to_their_boxes_and_those_of_no_detection_do_not_count(parts: Case) -> None:
    def change(outputs: Outputs) -> None:
        for name in ("boxes", "labels", "masks", "keypoint_heatmaps"):
            value = outputs[name]
            value[:, [0, 1]] = value[:, [1, 0]]
        for index, count in enumerate(outputs["counts"].tolist()):
            outputs["masks"][index, count:] = 1.0

    assert set(parts.report(change).raw_differences.values()) == {0.0}


def test_regions_may_change_places(proposed: Case) -> None:
    def change(outputs: Outputs) -> None:
        order = np.lexsort((-np.arange(len(outputs["raw.scores"])), outputs["raw.regions.images"]))
        for name in ("raw.scores", "raw.regions.boxes", "raw.regions.images", "raw.regions.valid"):
            outputs[name] = outputs[name][order]

    report = proposed.report(change)
    assert report.problems == ()
    assert report.raw_differences == {"raw.scores": 0.0}
    assert (report.regions, report.stray_regions) == (60 + 70, 0)  # portrait pictures have as many as they are high


def test_scores_of_other_regions_are_a_problem(proposed: Case) -> None:
    def change(outputs: Outputs) -> None:
        outputs["raw.scores"] = outputs["raw.scores"][::-1].copy()

    report = proposed.report(change)
    assert report.raw_differences["raw.scores"] > 1e-3
    assert len(report.problems) == 1


def test_other_regions_are_a_problem(proposed: Case) -> None:
    def change(outputs: Outputs) -> None:
        outputs["raw.regions.boxes"] += 1

    report = proposed.report(change)
    assert (report.regions, report.stray_regions) == (0, 2 * (60 + 70))
    assert report.problems == ("260 regions have no counterpart, 0 do (expected most to)",)
    assert proposed.report(change, precision="int8").problems == ()


def test_the_raw_form_with_a_fixed_number_of_proposals(tmp_path: Path) -> None:
    """Batches of one; 300 proposals an image, whatever it has."""
    detector, shapes = Proposed("keep"), []
    form = complete_form(Form(raw=True, canvas=(96, 96)), detector)
    case = Case(detector, proposed_data(), tmp_path, form, uncompiled(detector, form))
    report = case.report(lambda outputs: shapes.append(outputs["raw.scores"].shape))
    assert report.problems == ()
    assert (report.matches, report.matches_with_opencv, report.metrics) == (None, None, {})
    assert (report.batch_sizes, report.canvases) == ((1,), ((96, 96),))
    assert set(shapes) == {(300, 3)}
    assert report.milliseconds.file > 0
    assert "no labels" in report.no_metrics


def test_a_raw_file_has_no_detections_to_measure(labelled: ComparisonData, tmp_path: Path) -> None:
    detector = Cells()
    form = complete_form(Form(raw=True), detector)
    report = Case(detector, labelled, tmp_path, form, uncompiled(detector, form)).report()
    assert report.problems == ()
    assert "raw form" in report.no_metrics
    assert report.raw_differences == {"raw.logits": 0.0}


def test_a_file_that_resizes_is_compared_with_the_program(tmp_path: Path) -> None:
    """And with pictures that OpenCV resized, beside it: each alone, as the file has no canvas that others share."""
    detector, form = Cells("letterbox"), Form("resize")
    batch_sizes: list[int] = []
    detector.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0].images)))
    sizes = [(60, 50), (40, 64), (60, 50), (60, 50)]
    samples = [Sample(image, Objects.empty(), i) for i, image in enumerate(random_pictures(*sizes))]
    data = ComparisonData(tuple(samples), None, "pictures")
    case = Case(detector, data, tmp_path, form, uncompiled(detector, form))
    report = case.report()
    assert report.problems == ()
    assert report.matches is not None
    assert report.matches.torch == report.matches.file > 0
    assert report.matches_with_opencv is not None
    assert report.matches_with_opencv.torch > 0
    assert set(batch_sizes) == {1}
    assert report.batch_sizes == (1,)  # batches are 1, 2 of two sizes, and 1
    assert report.canvases == ((40, 64), (60, 50))
    wrong = case.report(change_labels)
    assert len(wrong.problems) == 1
    assert "have no counterpart" in wrong.problems[0]


@pytest.mark.parametrize("pictures", ["exact", "resize"])
def test_a_program_that_is_not_the_detector(labelled: ComparisonData, tmp_path: Path, pictures: Any) -> None:
    """The file does what the program does; where it resizes, no bound holds between it and the detector."""
    detector, form = Cells(), Form(pictures)
    program = uncompiled(copy.deepcopy(detector), form)
    nn.init.normal_(detector.conv.weight)
    report = Case(detector, labelled, tmp_path, form, program).report()
    assert report.matches is not None
    if pictures == "exact":
        assert report.matches.unmatched > 0
        assert len(report.problems) == 1
    else:
        assert report.matches.unmatched == 0
        assert report.problems == ()
        assert report.matches_with_opencv is not None
        assert report.matches_with_opencv.unmatched > 0
        assert f"{report.matches_with_opencv} (for comparison, no bound)" in report.table()


def test_the_detector_sees_the_canvas_of_the_file(labelled: ComparisonData, tmp_path: Path) -> None:
    detector = Cells("short_side")
    shapes = []
    detector.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].images.shape)))
    form = Form(canvas=(56, 80), batch=2)
    report = Case(detector, labelled, tmp_path, form, uncompiled(detector, form)).report()
    assert report.problems == ()
    assert {shape[2:] for shape in shapes[:3]} == {(56, 80)}
    assert [shape[0] for shape in shapes[:3]] == [1, 2, 7]
    assert (report.batch_sizes, report.canvases) == ((2,), ((56, 80),))


def test_classes_of_other_data_are_not_measured(cells: Case, tmp_path: Path) -> None:
    detector = Cells()  # of colours
    report = Case(detector, cells.data, tmp_path, Form(), uncompiled(detector, Form())).report()
    assert report.problems == ()
    assert report.metrics == {}
    assert "does not know 2 of the data set's 2 classes" in report.no_metrics


def test_precision_by_hand(labelled: ComparisonData, cells: Case) -> None:
    """PyTorch sees every cat and dog, the file no dog in five of the ten pictures.

    Precision is 1 up to a recall of 0.5, at 51 of COCO's 101 recalls, so AP of dogs is 51 / 101.
    """
    label = {"cat": 2, "dog": 0}
    assert labelled.dataset is not None
    in_torch: list[Limited] = []
    in_file: list[Limited] = []
    for index in range(10):
        objects = labelled.dataset.ground_truth(index).objects.to_tensors()
        names = [ANIMALS.names[number] for number in objects.labels.tolist()]
        columns = {
            "boxes": objects.boxes,
            "labels": torch.tensor([label[name] for name in names]),
            "scores": torch.full((len(names),), 0.9),
        }
        every = Detections(Objects.from_columns(columns), cells.detector.categories)
        in_torch.append((every, 20))
        rows = every.labels == label["cat"] if index % 2 else slice(None)
        in_file.append((replace(every, objects=every.objects.take(rows)), 20))
    metrics, reason = measure(cells.detector, labelled, in_torch, in_file)
    assert reason == ""
    for name in ("AP", "AP50"):
        assert metrics[name].torch == 1
        assert metrics[name].file == pytest.approx((1 + 51 / 101) / 2)


def report_of(**changes: Any) -> Report:
    """A report without problems, but for `changes`."""
    report = Report(
        detector="SSD",
        format="onnx",
        precision="float32",
        pictures="exact",
        raw=False,
        mebibytes=1.5,
        data="16 drawn pictures",
        batch_sizes=(1, 2, 7),
        canvases=((300, 300),),
        raw_differences={"raw.logits": 2e-6, "raw.deltas": 1e-5},
        regions=0,
        stray_regions=0,
        matches=Matches(60, 60, 0, 0, 0),
        matches_with_opencv=None,
        metrics={"AP": Both(0.5, 0.5), "AP50": Both(0.75, 0.75)},
        no_metrics="",
        milliseconds=Both(20.0, 10.0),
        bounds=Bounds(),
    )
    return replace(report, **changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"raw_differences": {}}, "no output of the network was compared"),
        (
            {"raw_differences": {"raw.logits": 2e-4, "raw.deltas": 3e-4, "raw.boxes": 0.0}},
            "2 of 3 outputs of the network differ, most of all raw.deltas by 3.0e-04 (expected at most 1e-04)",
        ),
        (
            {"raw_differences": {"raw.logits": float("inf")}, "precision": "int8"},
            "1 of 1 outputs of the network differ, most of all raw.logits by inf (expected numbers)",
        ),
        ({"matches": Matches(60, 60, 3, 9, 0)}, "3 of 120 detections have no counterpart (expected none)"),
        (
            {"matches": Matches(60, 60, 3, 9, 0), "bounds": Bounds(unmatched=0.02)},
            "3 of 120 detections have no counterpart (expected at most 2 %)",
        ),
        (
            {"metrics": {"AP": Both(0.5, 0.4)}, "precision": "int8"},
            "AP falls from 0.5000 to 0.4000 (expected a loss of at most 0.02)",
        ),
        (
            {"metrics": {"AP": Both(0.5, 0.4)}, "pictures": "resize"},
            "AP falls from 0.5000 to 0.4000 (expected a loss of at most 0.02)",
        ),
    ],
)
def test_problems(changes: dict[str, Any], problem: str) -> None:
    report = report_of(**changes)
    assert report.problems == (problem,)
    assert problem in report.table()
    assert json.loads(report.to_json())["problems"] == [problem]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"raw_differences": {"raw.logits": 1e-4}},
        {"matches": Matches(60, 60, 3, 9, 0), "bounds": Bounds(unmatched=0.025)},
        {"matches": Matches(0, 0, 0, 0, 0)},
        {"regions": 10, "stray_regions": 4},
        {"metrics": {"AP": Both(0.5, 0.6)}, "precision": "int8"},
        {"metrics": {"AP": Both(0.5, 0.485)}, "precision": "int8"},
        {"metrics": {"AP": Both(float("nan"), float("nan"))}, "precision": "int8"},
        {"matches": Matches(60, 60, 99, 0, 0), "raw_differences": {"raw.logits": 9.0}, "precision": "int8"},
    ],
)
def test_no_problem(changes: dict[str, Any]) -> None:
    report = report_of(**changes)
    assert report.problems == ()
    eight = changes.get("precision") == "int8"
    verdict = "stays within the bounds for 8 bits" if eight else "does what the detector does"
    assert report.summary().startswith(verdict)
    assert "\n" not in report.summary()


def test_the_json_has_every_number_and_nothing_that_json_has_not() -> None:
    report = report_of(raw_differences={"raw.logits": float("inf")}, metrics={"AP": Both(float("nan"), 0.25)})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    tree = json.loads(report.to_json(), parse_constant=refuse)
    assert tree["raw_differences"] == {"raw.logits": None}
    assert tree["metrics"] == {"AP": {"torch": None, "file": 0.25}}
    assert tree["matches"]["torch"] == 60
    assert tree["bounds"] == {"raw_difference": 1e-4, "unmatched": 0.0, "ap_loss": 0.02}
    assert tree["canvases"] == [[300, 300]]
    assert len(tree["problems"]) == 1


def test_the_table_has_every_number() -> None:
    table = report_of(matches=Matches(60, 61, 1, 5, 0), regions=300, stray_regions=2).table()
    for text in (
        "SSD, onnx, float32",
        "1.50 MiB",
        "16 drawn pictures",
        "1, 2, 7",
        "300 x 300",
        "raw.logits",
        "2.0e-06",
        "1.0e-05",
        "300 compared, 2 without",
        "60 of PyTorch, 61 of the file, 99.17 %",
        "5 at a limit",
        "0.5000 in PyTorch, 0.5000 in the file",
        "20.0 ms in PyTorch, 10.0 ms in the file",
        "1 of 121 detections have no counterpart",
    ):
        assert text in table, text


def test_the_table_tells_what_has_no_bound_in_8_bits() -> None:
    assert "AP may fall by 0.02" in report_of(precision="int8").table()
    unlabelled = report_of(precision="int8", metrics={}, no_metrics="the pictures have no labels")
    assert unlabelled.problems == ()
    assert "no loss of AP can be measured" in unlabelled.table()
    assert "not measured: the pictures have no labels" in unlabelled.table()


def test_a_picture_set_without_detections_is_called_so() -> None:
    assert "none to compare" in report_of(matches=Matches(0, 0, 0, 0, 0)).table()

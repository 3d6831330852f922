"""Files of 8 bits: what is quantised, on which numbers the ranges are measured, and what the integers stand for."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from detkit.config import UserError, load_config, parse_config
from detkit.data.build import build_dataset
from detkit.engine.evaluate import evaluate_source
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.export import files
from detkit.export.export import describe
from detkit.export.files import write_onnx, write_openvino
from detkit.export.metadata import Metadata
from detkit.export.program import Form, complete_form, export_program, output_names
from detkit.export.quantise import calibration_inputs, nodes_to_quantise, quantise
from detkit.export.runtime import OnnxRunner, OpenVinoRunner
from detkit.nn.proposals import FileProposalsConfig
from tests.cli_support import TINY, write_config
from tests.export.detectors import Cells, Proposed, write_exported

HIDDEN = 8
Inputs = dict[str, np.ndarray]


class TwoLayers(Cells):
    """The first layer's channels differ in size by up to ten times, and the second undoes that."""

    def __init__(self) -> None:
        super().__init__("short_side")
        gains = torch.logspace(-1, 0, HIDDEN)
        first, second = nn.Conv2d(3, HIDDEN, 8, 8), nn.Conv2d(HIDDEN, 3, 1)
        with torch.no_grad():
            first.weight *= gains.view(-1, 1, 1, 1)
            first.bias *= gains
            second.weight /= gains.view(1, -1, 1, 1)
        self.conv = nn.Sequential(first, nn.ReLU(), second)  # type: ignore[assignment]
        self.eval()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Of three training pictures of the built-in shapes."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    data = {"name": "shapes", "root": str(root), "num_train": 3, "num_val": 1}
    return parse_config(TINY | {"data": data}, RunConfig, where="the test")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Metadata]:
    """The complete file of `TwoLayers` in float32 and in 8 bits, and its metadata."""
    folder = tmp_path_factory.mktemp("files")
    detector = TwoLayers()
    form = complete_form(Form(), detector)
    outputs = output_names(detector, form, raw_too=True)
    metadata = describe(detector, form, None, "none").model_copy(update={"outputs": outputs})
    write_onnx(export_program(detector, form, raw_too=True), metadata, folder / "float.onnx")
    quantise(folder / "float.onnx", folder / "int8.onnx", random_inputs(5))
    return folder / "float.onnx", folder / "int8.onnx", metadata


def random_inputs(count: int, batch: int = 1) -> list[Inputs]:
    rng = np.random.default_rng(count)
    sizes = np.full((batch, 2), 64)
    images = rng.integers(0, 256, (count, batch, 3, 64, 64)).astype(np.uint8)
    return [{"images": image, "sizes": sizes, "original_sizes": sizes} for image in images]


# What is quantised


def test_layers_with_weights_and_what_lies_between_but_not_the_last() -> None:
    """In this order: a resize by a matrix that is computed, a residual block, attention, two heads on one feature map,
    decoding."""
    nodes = [
        helper.make_node("MatMul", ["image", "scale"], ["resized"], "resize"),
        helper.make_node("Conv", ["resized", "w"], ["a"], "stem"),
        helper.make_node("Relu", ["a"], ["b"], "stem_relu"),
        helper.make_node("Conv", ["b", "w"], ["c"], "block"),
        helper.make_node("Add", ["b", "c"], ["d"], "shortcut"),
        helper.make_node("Add", ["d", "positions"], ["e"], "embedding"),
        helper.make_node("MatMul", ["e", "e"], ["f"], "attention"),
        helper.make_node("MatMul", ["f", "w"], ["g"], "projection"),
        helper.make_node("Clip", ["g", "zero", "six"], ["h"], "relu6"),
        helper.make_node("Resize", ["h", "", "", "sides"], ["i"], "upsample"),
        helper.make_node("Concat", ["d", "i"], ["j"], "route", axis=1),
        helper.make_node("MaxPool", ["j"], ["k"], "pool", kernel_shape=[2, 2]),
        helper.make_node("Conv", ["k", "w"], ["logits"], "classifier"),
        helper.make_node("Gemm", ["k", "w"], ["deltas"], "regressor"),
        helper.make_node("Add", ["deltas", "anchors"], ["boxes"], "decode"),
        helper.make_node("Relu", ["boxes"], ["clipped"], "clip"),
    ]
    weights = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "clipped")]
    expected = ["stem", "stem_relu", "block", "shortcut", "projection", "relu6", "upsample", "route", "pool"]
    assert nodes_to_quantise(helper.make_graph(nodes, "hand-made", [], outputs, [weights])) == expected


def test_a_layer_whose_output_and_successor_are_both_read_is_a_last_one() -> None:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["proposals"], "first"),
        helper.make_node("Conv", ["proposals", "w"], ["classes"], "second"),
    ]
    weights = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("proposals", "classes")]
    assert nodes_to_quantise(helper.make_graph(nodes, "hand-made", [], outputs, [weights])) == []


# What the integers stand for


def test_equals_a_slow_reference(pair: tuple[Path, Path, Metadata]) -> None:
    """The first layer in integers, with a range for each of its channels, and the second in float32."""
    first, _, second = TwoLayers().conv  # type: ignore[misc]
    calibration = torch.cat([network_input(inputs) for inputs in random_inputs(5)])  # a picture each
    with torch.no_grad():
        hidden = first(calibration).relu()
        weight_scale = first.weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 64
        images = rounded(network_input(random_inputs(1)[0]), calibration)
        weight = (first.weight / weight_scale).round() * weight_scale
        one = nn.functional.conv2d(images, weight, first.bias, stride=8).relu()
        expected = 4 * second(rounded(one, hidden))
        step = hidden.flatten(1).amax(dim=1).mean() / 255 * 4 * second.weight.abs().sum(dim=1).max()
    actual = torch.from_numpy(OnnxRunner(pair[1])(random_inputs(1)[0])["raw.logits"])
    assert float((actual - expected).abs().max()) <= 1.01 * step  # a number in the middle is rounded up or down
    assert float(((actual - expected).abs() < 1e-3 * expected.abs().max()).float().mean()) > 0.95


def rounded(values: torch.Tensor, calibration: torch.Tensor) -> torch.Tensor:
    """To one of 256 numbers between the mean smallest and the mean largest of the pictures, of which 0 is one."""
    low, high = calibration.flatten(1).amin(dim=1).mean().clamp(max=0), calibration.flatten(1).amax(dim=1).mean()
    scale = (high - low) / 255
    zero = (-low / scale).round()
    return ((values / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def network_input(inputs: Inputs) -> torch.Tensor:
    return torch.from_numpy(inputs["images"]).flip(1) / 255


def test_a_value_beyond_the_calibration_is_cut_off(tmp_path: Path, pair: tuple[Path, Path, Metadata]) -> None:
    dark, bright = random_inputs(2)
    dark["images"] = dark["images"] // 4
    quantise(pair[0], tmp_path / "dark.onnx", [dark])
    at_limit = bright | {"images": np.minimum(bright["images"], dark["images"].max())}
    runner = OnnxRunner(tmp_path / "dark.onnx")
    np.testing.assert_array_equal(runner(bright)["raw.logits"], runner(at_limit)["raw.logits"])


# What stays


def test_inputs_outputs_and_metadata_stay(pair: tuple[Path, Path, Metadata]) -> None:
    before, after = (onnx.load(path) for path in pair[:2])
    assert [value.name for value in after.graph.input] == [value.name for value in before.graph.input]
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    assert OnnxRunner(pair[1]).metadata == pair[2].to_text()
    assert {opset.domain for opset in after.opset_import} <= {"", "com.microsoft", "ai.onnx.ml"}
    assert not [node.op_type for node in after.graph.node if node.domain not in ("", "ai.onnx")]


def test_any_batch(pair: tuple[Path, Path, Metadata]) -> None:
    runner, inputs = OnnxRunner(pair[1]), random_inputs(1, batch=3)[0]
    together = runner(inputs)
    for row in range(3):
        alone = runner({name: value[row : row + 1] for name, value in inputs.items()})
        for name in together:
            if len(together[name]) == 3:
                np.testing.assert_allclose(together[name][row : row + 1], alone[name], rtol=1e-6, atol=1e-6)


def test_any_sides(pair: tuple[Path, Path, Metadata]) -> None:
    """A cell is computed alike whatever the picture has beside it."""
    inputs, runner = random_inputs(1)[0], OnnxRunner(pair[1])
    whole = runner(inputs)["raw.logits"]
    sizes = np.array([[40, 56]])
    part = {"images": inputs["images"][:, :, :40, :56], "sizes": sizes, "original_sizes": sizes}
    np.testing.assert_allclose(runner(part)["raw.logits"], whole[:, :, :5, :7], rtol=1e-6, atol=1e-6)


def test_openvino_runs_the_same_integers(tmp_path: Path, pair: tuple[Path, Path, Metadata]) -> None:
    write_openvino(pair[1], pair[2], tmp_path / "int8.xml")
    runner, inputs = OpenVinoRunner(tmp_path / "int8.xml"), random_inputs(1)[0]
    precisions = sorted(
        str(node.get_rt_info()["runtimePrecision"].astype(str))
        for node in runner.model.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Convolution"
    )
    assert precisions == ["f32", "u8"]
    actual, expected = runner(inputs), OnnxRunner(pair[1])(inputs)
    steps = np.abs(actual["raw.logits"] - expected["raw.logits"]).max() / np.abs(expected["raw.logits"]).max()
    assert steps < 0.02
    assert actual["counts"].tolist() == expected["counts"].tolist()


# How it is run


def test_inputs_are_taken_one_by_one(tmp_path: Path, pair: tuple[Path, Path, Metadata]) -> None:
    """Each is free before the next is made, so that memory does not grow with their number."""
    taken: list[weakref.ref[np.ndarray]] = []

    def stream() -> Iterator[Inputs]:
        for number in range(1, 6):
            assert all(reference() is None for reference in taken[:-1]), "inputs of earlier pictures are still there"
            inputs = random_inputs(number)[0]
            inputs["images"] = inputs["images"].copy()
            taken.append(weakref.ref(inputs["images"]))
            yield inputs
            del inputs

    quantise(pair[0], tmp_path / "int8.onnx", stream())
    assert len(taken) == 5


def test_says_nothing(
    tmp_path: Path,
    pair: tuple[Path, Path, Metadata],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    quantise(pair[0], tmp_path / "int8.onnx", random_inputs(2))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert [file.name for file in tmp_path.iterdir()] == ["int8.onnx"]


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[Path, Path, Metadata]) -> None:
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(UserError, match=r"onnxruntime must be installed: pip install -e '\.\[export\]'"):
        quantise(pair[0], tmp_path / "int8.onnx", random_inputs(1))


# What it is calibrated on


def inputs_of(detector: Any, settings: RunConfig, form: Form, count: int = 128) -> list[Inputs]:
    return list(calibration_inputs(detector, complete_form(form, detector), settings, count))


def test_training_pictures_as_inputs(settings: RunConfig) -> None:
    dataset, detector = build_dataset(settings.data, "train"), Cells("stretch")
    calibration = inputs_of(detector, settings, Form())
    assert len(calibration) == len(dataset) == 3
    for index, inputs in enumerate(calibration):
        picture = dataset.load(index).image
        expected = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)[None]
        assert set(inputs) == {"images", "sizes", "original_sizes"}
        np.testing.assert_array_equal(inputs["images"], expected)
        assert inputs["sizes"].tolist() == [[64, 64]]
        assert inputs["original_sizes"].tolist() == [list(picture.shape[:2])]


def test_as_many_pictures_as_asked_for(settings: RunConfig) -> None:
    assert len(inputs_of(Cells("stretch"), settings, Form(), count=2)) == 2


def test_pictures_that_the_program_resizes(settings: RunConfig) -> None:
    inputs = inputs_of(Cells("letterbox"), settings, Form("resize"))[1]
    picture = build_dataset(settings.data, "train").load(1).image
    assert set(inputs) == {"images"}
    np.testing.assert_array_equal(inputs["images"], picture.transpose(2, 0, 1)[None])


def test_a_fixed_batch_and_canvas(settings: RunConfig) -> None:
    """The picture is in the upper left corner of each."""
    inputs = inputs_of(Cells("short_side"), settings, Form(batch=2, canvas=(72, 80)))[0]
    (plain,) = inputs_of(Cells("short_side"), settings, Form(), count=1)
    height, width = plain["images"].shape[2:]
    assert inputs["images"].shape == (2, 3, 72, 80)
    for image in inputs["images"]:
        np.testing.assert_array_equal(image[:, :height, :width], plain["images"][0])
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
    assert inputs["sizes"].tolist() == plain["sizes"].tolist() * 2


def test_a_picture_larger_than_the_canvas(settings: RunConfig) -> None:
    with pytest.raises(UserError, match=r"a picture is \d+ x \d+ px .* of at most 64 x 64; export"):
        inputs_of(Cells("keep"), settings, Form(canvas=(64, 64)))


def test_proposals(tmp_path: Path, settings: RunConfig) -> None:
    """In pixels of the input, as many as the picture has."""
    dataset = build_dataset(settings.data, "train")
    boxes = [[{"bbox": [10 * k, 8, 20, 30]} for k in range(1, 3 + index)] for index in range(3)]
    rows = [
        {"image_id": dataset.image_id(index), "category_id": 1, "score": 1 - k / 10} | box
        for index in range(3)
        for k, box in enumerate(boxes[index])
    ]
    (tmp_path / "proposals.json").write_text(json.dumps(rows))
    detector = Proposed()
    detector.proposals = FileProposalsConfig(paths=(str(tmp_path / "proposals.json"),))
    loader = settings.loader.model_copy(update={"proposals": str(tmp_path / "stored")})
    for index, inputs in enumerate(inputs_of(detector, settings.model_copy(update={"loader": loader}), Form())):
        (height, width), (h, w) = inputs["original_sizes"][0], inputs["sizes"][0]
        expected = np.array([[10 * k, 8, 10 * k + 20, 38] for k in range(1, 3 + index)])
        scaled = expected * np.array([w / width, h / height] * 2)
        np.testing.assert_allclose(inputs["proposals"], scaled[None], rtol=1e-5)


@pytest.mark.long
def test_a_real_network_loses_little(tmp_path: Path, shared_data: Path) -> None:
    """A small one with depthwise convolutions, some of whose activations are far from all others: with ranges from the
    smallest to the largest value it loses 0.035 of its AP of 0.315."""
    root = shared_data / "voc07-mini" / "VOCdevkit"
    data = {"name": "voc", "root": str(root), "train": "2007_train", "val": "2007_trainval"}
    config = write_config(tmp_path / "config.yaml", data)
    source = shared_data / "weights" / "yolo-fastest-1.0-voc.cfg"
    detector, _ = load_detector(source)
    form = complete_form(Form(batch=1), detector)
    inputs = calibration_inputs(detector, form, load_config(config, RunConfig), 128)
    quantise(write_exported(detector, tmp_path / "float.onnx", form), tmp_path / "int8.onnx", inputs)
    before, after = (
        evaluate_source(file, ["coco"], config=config)[0].results["coco"].score
        for file in (source, tmp_path / "int8.onnx")
    )
    assert before > 0.3
    assert after > before - 0.02
